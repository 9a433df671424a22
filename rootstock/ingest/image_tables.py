"""Read CSV, TSV and Parquet tables of images: the columns that say what the images are, as text, in bounded memory."""

import codecs
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from rootstock.dataset import label_sets
from rootstock.system import escape
from rootstock.system.causes import first_line
from rootstock.system.errors import SourceError

EXTENSIONS = (".csv", ".tsv", ".parquet")
MAX_ROWS, MAX_COLUMNS, HEADER_BYTES = 2**21, 10_000, 2**16  # of a CSV
# A Parquet table may have more rows, and its text more bytes, if the table itself is large: a few bytes may unpack to
# billions. A million URLs that count up are 80 MB of text in half a megabyte.
MAX_UNPACKED_BYTES, ROWS_PER_BYTE, TEXT_PER_BYTE, ROWS_PER_BATCH = 2**29, 1, 20, 1024
COLUMNS = ("path", "label", "labels", "domain", "split", "group")
LABELS = ("label", "labels")  # of which a table has one
REPEATED = (*LABELS, "domain")  # texts that many rows have
ADDRESSES = ("path", "url", "image", "file", "filename")  # of images to classify: the first that a table has


def read(where: str, root: str, data: bytes) -> tuple[pa.Table, str, int]:
    """Read the columns of a table of labelled images, as text in one piece.

    Args:
        where: the table's name, for errors.
        root: its path in its store.
        data: its bytes.

    Returns:
        The rows that have a path; which of LABELS the table has; and the number of rows without a path.

    Raises:
        SourceError: the table is damaged or empty, or a column is missing, duplicated or not text.
    """
    table, there = _parsed(where, root, data, COLUMNS)
    kinds = [name for name in LABELS if name in there]
    if missing := [name for name, is_there in (("path", "path" in there), ("label", kinds)) if not is_there]:
        raise SourceError(f"{where}: no column {missing[0]!r}; it has {', '.join(there)}.{_hint(root, there)}")
    if len(kinds) > 1:
        raise SourceError(
            f"{where}: has the columns 'label' and 'labels'; expected one of them: label for one class per image, "
            "labels for any number."
        )
    if twice := [name for name in COLUMNS if there.count(name) > 1]:
        raise SourceError(f"{where}: the column {twice[0]!r} appears twice; expected it once.")
    table = table.select([name for name in COLUMNS if name in there])
    for name in table.column_names:
        as_text = _as_label_sets if name == "labels" else _as_text
        text = as_text(table, name, where).cast(pa.large_string())  # of which one piece may have gigabytes
        column = text.combine_chunks()
        if name in REPEATED:
            column = column.dictionary_encode()
        table = table.set_column(table.column_names.index(name), name, column)  # one after the other
    rows, has_path = len(table), pc.greater(pc.binary_length(table["path"]), 0)
    if not pc.all(pc.fill_null(has_path, False)).as_py():  # a filtered table is a copy
        table = table.filter(has_path).combine_chunks()
    if not len(table):
        raise SourceError(f"{where}: lists no images; expected one row per image, with its path and label.")
    return table, kinds[0], rows - len(table)


def addresses(where: str, root: str, data: bytes) -> list[str]:
    """Return the addresses of images in a table: paths, absolute or relative to it, or URLs.

    Args:
        where: the table's name, for errors.
        root: its path in its store.
        data: its bytes.

    Raises:
        SourceError: it is not readable, or has no column of addresses.
    """
    table, there = _parsed(where, root, data, ADDRESSES)
    name = next((name for name in ADDRESSES if there.count(name) == 1), None)
    if name is None:
        named = f"{', '.join(ADDRESSES[:-1])} or {ADDRESSES[-1]}"
        raise SourceError(f"{where}: expected a column of addresses, named {named}; it has {', '.join(there)}.")
    return [address for address in _as_text(table, name, where).to_pylist() if address]


def _parsed(where: str, root: str, data: bytes, columns: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """Read a table; return the relevant columns, and the names of all columns.

    Raises:
        SourceError: it is not readable.
    """
    try:
        return _parse(root, pa.BufferReader(data), columns)
    except Exception as error:  # anything, on damaged bytes
        is_text = not root.lower().endswith(".parquet")
        if is_text and ("UTF8" in str(error) or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))):
            raise SourceError(
                f"{where}: not a readable manifest: its text is not encoded as UTF-8; save it as UTF-8."
            ) from None
        raise SourceError(f"{where}: not a readable manifest: {first_line(error)}") from None


def _as_text(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    try:
        return table[name].cast(pa.string())
    except pa.ArrowException:
        kind = table.schema.field(name).type
        raise SourceError(f"{where}: the column {name!r} holds {kind}; expected text.") from None


def _as_label_sets(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    """Return a column of lists as text; one of text stays.

    Raises:
        SourceError: it holds something else, or a label has the character that separates labels.
    """
    kind = table.schema.field(name).type
    if not any(is_list(kind) for is_list in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        return _as_text(table, name, where)
    try:
        lists = table[name].cast(pa.list_(pa.string()))
    except pa.ArrowException:
        raise SourceError(f"{where}: the column {name!r} holds {kind}; expected lists of texts, or text.") from None
    if pc.any(pc.match_substring(pc.list_flatten(lists), label_sets.SEPARATOR)).as_py():
        raise SourceError(
            f"{where}: a label in the column {name!r} has a {label_sets.SEPARATOR!r}, which separates labels; expected "
            "labels without it."
        )
    return pc.binary_join(lists, label_sets.SEPARATOR)


def _hint(root: str, there: list[str]) -> str:
    """Suggest what may be wrong with the header of a table."""
    expected = "tabs" if root.lower().endswith(".tsv") else "commas"
    if len(there) == 1 and (other := next((mark for mark in ";,\t|" if mark in there[0]), "")):
        return f" Its cells are separated by {other!r}; expected {expected}."
    return " The first row must name the columns: path and label (or labels), and optionally domain, split and group."


def _parse(root: str, file: pa.BufferReader, columns: Sequence[str]) -> tuple[pa.Table, list[str]]:
    if root.lower().endswith(".parquet"):
        parquet = pq.ParquetFile(file)  # pq.read_table would import pandas
        there = parquet.schema_arrow.names
        return _read_batches(parquet, [name for name in columns if there.count(name) == 1], file.size()), there
    delimiter = "\t" if root.lower().endswith(".tsv") else ","
    _check_lines(file, delimiter)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter)
    there = pyarrow.csv.open_csv(file, parse_options=parse).schema.names  # reads the first block
    file.seek(0)
    if not (names := [name for name in columns if there.count(name) == 1]):
        return pa.table({}), there
    # Labels such as 007 are names, not numbers.
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=names)
    return _unescape_cells(pyarrow.csv.read_csv(file, convert_options=convert, parse_options=parse)), there


def _check_lines(file: pa.BufferReader, delimiter: str) -> None:
    """Reject a CSV with too many rows or columns to parse in bounded memory.

    Raises:
        ValueError: it has too many.
    """
    header = file.read(HEADER_BYTES).lstrip().splitlines()[:1]
    if header and header[0].count(delimiter.encode()) >= MAX_COLUMNS:
        raise ValueError(f"its first row has more than {MAX_COLUMNS:,} columns")
    file.seek(0)
    lines, returns = 0, 0
    while some := file.read(2**20):
        lines, returns = lines + some.count(b"\n"), returns + some.count(b"\r")
    if max(lines, returns) > MAX_ROWS + 1:
        raise ValueError(f"it has more than {MAX_ROWS:,} rows; split it into several files")
    file.seek(0)


def _read_batches(parquet: pq.ParquetFile, names: list[str], packed: int) -> pa.Table:
    """Read columns in small batches, since a few bytes may expand to billions of rows or characters.

    Raises:
        ValueError: they expand beyond the limits.
    """
    groups = (parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups))
    if sum(group.num_rows for group in groups) > max(MAX_ROWS, ROWS_PER_BYTE * packed):
        raise ValueError(f"{parquet.metadata.num_rows:,} rows in {packed:,} bytes")
    limit, unpacked, batches = max(MAX_UNPACKED_BYTES, TEXT_PER_BYTE * packed), 0, []
    for batch in parquet.iter_batches(ROWS_PER_BATCH, columns=names):
        unpacked += sum(_text_bytes(column) for column in batch.columns)
        if unpacked > limit:
            raise ValueError(f"its {packed:,} bytes unpack to {unpacked:,} or more")
        batches.append(batch)
    schema = pa.schema([parquet.schema_arrow.field(name) for name in names])
    return pa.Table.from_batches(batches, batches[0].schema if batches else schema)


def _text_bytes(column: pa.Array) -> int:
    """Return the size of a column as text, with dictionary values expanded."""
    if isinstance(column, pa.DictionaryArray) and pa.types.is_string(column.type.value_type):
        return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0
    return int(column.nbytes)


def _unescape_cells(table: pa.Table) -> pa.Table:
    """Undo the escaping of cells in a table that was written for spreadsheets (escape.csv)."""
    for number, name in enumerate(table.column_names):
        values = table[name]
        if pc.any(pc.starts_with(values, "'")).as_py():
            true = [[value and escape.from_cell(value) for value in part.to_pylist()] for part in values.chunks]
            table = table.set_column(number, name, pa.chunked_array(true, pa.string()))
    return table
