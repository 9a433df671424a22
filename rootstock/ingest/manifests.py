"""Tables as sources: a CSV, TSV or Parquet file with a row an image."""

import codecs
import posixpath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from rootstock.config import params
from rootstock.images.inspection import MAX_FILE_BYTES, Reason
from rootstock.ingest import folder_names, layout
from rootstock.ingest.folders import Files, Info, describe, stamp_of
from rootstock.ingest.labels import clean
from rootstock.ingest.layout import SPLITS, Item
from rootstock.system import escape
from rootstock.system.causes import first_line
from rootstock.system.errors import SourceError

EXTENSIONS = (".csv", ".tsv", ".parquet")
TABLE = "table"  # the layout of such a source, in the summary
# A Parquet table may unpack to so many bytes, or so many times what packs them; a row counts with some more, for what
# becomes of it.
MOST_UNPACKED_BYTES, MOST_TIMES, ROW_BYTES, ROWS_AT_ONCE = 2**26, 20, 32, 1024
MOST_ROWS, MOST_COLUMNS, HEADER_BYTES = 2**21, 10_000, 2**16  # of a CSV
COLUMNS = ("path", "label", "domain", "split")


def list_manifest(spec: params.Source, store: Any, root: str, data: bytes) -> Files:  # noqa: ANN401
    """List what a table names: columns path and label, if it likes domain and split.

    Args:
        spec: the source.
        store: where the table lies, and what it names.
        root: its place there.
        data: its bytes.

    Raises:
        SourceError: it is no such table.
    """
    rows = _read(spec, root, data).to_pylist()
    folder = root.rpartition("/")[0]
    places = {row["path"]: _place(row["path"], folder, store) for row in rows}
    infos = describe(store, set(places.values()))
    turned = _turn_backslashes(places, infos, folder, store)
    asked = [_split_of(row, spec) for row in rows]
    # As with folders: where the rows name no test split, say, the one they do name for validation is it.
    given = set(asked) if all(asked) else set()
    meaning = layout.resolve_splits(given) | {"": SPLITS}
    items, place_of = [], {}
    for row, split in zip(rows, asked, strict=True):
        place = places[row["path"]]
        path = posixpath.relpath(place, folder)  # no absolute path gets into the data
        place_of[path] = place
        label, info = clean(row["label"] or ""), infos[place]
        stamp = stamp_of(info) if info else ""
        domain = row.get("domain") or spec.domain
        items.append(Item(path, label, domain, meaning[split], stamp, _problem(label, info)))
    items.sort(key=lambda item: item.path)
    notes = layout.note_on(given, "row")
    if turned:
        notes.append(f"{len(turned)} paths have backslashes, and were read with slashes (e.g. {turned[0]})")
    classes = sorted({item.label for item in items if item.label})
    return Files(store, items, notes, place_of.__getitem__, {"layout": TABLE, "classes": classes})


def _problem(label: str, info: Info | None) -> Reason | None:
    if info is None or info.get("type", "file") != "file":
        return Reason.UNREADABLE
    if (info.get("size") or 0) > MAX_FILE_BYTES:
        return Reason.TOO_LARGE
    return None if label else Reason.NO_LABEL


def _read(spec: params.Source, root: str, data: bytes) -> pa.Table:
    """Read the columns that count, as text.

    Raises:
        SourceError: the table is damaged, lacks a column or has one twice, holds other things than text, or nothing.
    """
    try:
        table, there = _parse(root, pa.BufferReader(data))
    except Exception as error:  # whatever a damaged byte led to
        is_text = not root.lower().endswith(".parquet")
        if is_text and ("UTF8" in str(error) or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))):
            raise SourceError(
                f"{spec.path}: not a readable manifest: it is text in another encoding than UTF-8; save it in that."
            ) from None
        raise SourceError(f"{spec.path}: not a readable manifest: {first_line(error)}") from None
    if missing := [name for name in ("path", "label") if name not in there]:
        raise SourceError(f"{spec.path}: no column {missing[0]!r}; it has {', '.join(there)}.{_hint(root, there)}")
    if twice := [name for name in COLUMNS if there.count(name) > 1]:
        raise SourceError(f"{spec.path}: the column {twice[0]!r} is there twice; expected one of them.")
    table = table.select([name for name in COLUMNS if name in there])
    for name, kind in zip(table.column_names, table.schema.types, strict=True):
        try:
            column = table[name].cast(pa.string())
        except pa.ArrowException:
            raise SourceError(f"{spec.path}: the column {name!r} holds {kind}; expected text.") from None
        table = table.set_column(table.column_names.index(name), name, column)
    table = table.filter(pc.greater(pc.utf8_length(table["path"]), 0))
    if not len(table):
        raise SourceError(f"{spec.path}: names no image; expected a row for each, with its path and its label.")
    return table


def _hint(root: str, there: list[str]) -> str:
    """Say what may be wrong with a table's first row."""
    expected = "tabs" if root.lower().endswith(".tsv") else "commas"
    if len(there) == 1 and (other := next((mark for mark in ";,\t|" if mark in there[0]), "")):
        return f" Its cells have {other!r} between them; expected {expected}."
    return " Its first row names the columns: path and label, and if you like domain and split."


def _parse(root: str, file: pa.BufferReader) -> tuple[pa.Table, list[str]]:
    """Read a table, and say which columns it has."""
    if root.lower().endswith(".parquet"):
        parquet = pq.ParquetFile(file)  # pq.read_table would import pandas
        there = parquet.schema_arrow.names
        return _unpacked(parquet, [name for name in COLUMNS if there.count(name) == 1], file.size()), there
    delimiter = "\t" if root.lower().endswith(".tsv") else ","
    _check_lines(file, delimiter)
    # Labels such as 007 are names, not numbers.
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()))
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter)
    table = _from_cells(pyarrow.csv.read_csv(file, convert_options=convert, parse_options=parse))
    return table, table.column_names


def _check_lines(file: pa.BufferReader, delimiter: str) -> None:
    """Refuse a CSV whose rows or columns would take many times its size.

    Raises:
        ValueError: it has more than any data set.
    """
    header = file.read(HEADER_BYTES).lstrip().splitlines()[:1]
    if header and header[0].count(delimiter.encode()) >= MOST_COLUMNS:
        raise ValueError(f"its first row has more than {MOST_COLUMNS:,} columns")
    file.seek(0)
    lines, returns = 0, 0
    while some := file.read(2**20):
        lines, returns = lines + some.count(b"\n"), returns + some.count(b"\r")
    if max(lines, returns) > MOST_ROWS + 1:
        raise ValueError(f"it has more than {MOST_ROWS:,} rows; make several of it")
    file.seek(0)


def _unpacked(parquet: pq.ParquetFile, names: list[str], packed: int) -> pa.Table:
    """Read columns, a few rows at a time: a few bytes may stand for billions of rows, or of letters.

    Raises:
        ValueError: they are many times what packs them.
    """
    most, taken, batches = max(MOST_UNPACKED_BYTES, MOST_TIMES * packed), 0, []
    groups = (parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups))
    if sum(group.num_rows * ROW_BYTES for group in groups) > most:
        raise ValueError(f"{parquet.metadata.num_rows:,} rows in {packed:,} bytes")
    for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=names):
        taken += ROW_BYTES * len(batch) + sum(_bytes(column) for column in batch.columns)
        if taken > most:
            raise ValueError(f"it unpacks to {taken:,} bytes and more from {packed:,}")
        batches.append(batch)
    schema = pa.schema([parquet.schema_arrow.field(name) for name in names])
    return pa.Table.from_batches(batches, batches[0].schema if batches else schema)


def _bytes(column: pa.Array) -> int:
    """Say what a column takes as text, of which a dictionary may name one a thousand times."""
    if isinstance(column, pa.DictionaryArray) and pa.types.is_string(column.type.value_type):
        return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0
    return int(column.nbytes)


def _from_cells(table: pa.Table) -> pa.Table:
    """Give the names for which a table that was made for spreadsheets stands (escape.csv)."""
    for number, name in enumerate(table.column_names):
        values = table.column(number)  # two may have one name
        if name in COLUMNS and pc.any(pc.starts_with(values, "'")).as_py():
            true = [value and escape.from_cell(value) for value in values.to_pylist()]
            table = table.set_column(number, name, pa.array(true, pa.string()))
    return table


def _turn_backslashes(
    places: dict[str, str],
    infos: dict[str, Info | None],
    folder: str,
    store: Any,  # noqa: ANN401
) -> list[str]:
    """Find files under their paths with slashes where a table of Windows has backslashes; names these paths."""
    lost = {path: path.replace("\\", "/") for path, place in places.items() if "\\" in path and infos[place] is None}
    turned = {path: _place(slashed, folder, store) for path, slashed in lost.items()}
    found = describe(store, set(turned.values()))
    there = [path for path, place in turned.items() if found[place]]
    for path in there:
        places[path] = turned[path]
        infos[turned[path]] = found[turned[path]]
    return there


def _split_of(row: dict[str, str | None], spec: params.Source) -> str:
    """Name the split that a row asks for; nothing where it leaves that to the draw."""
    given = (row.get("split") or "").strip()
    split = folder_names.split_of(given)
    if given and not split:
        raise SourceError(f"{spec.path}: split of {row['path']} is {given!r}; expected train, val or test")
    return split


def _place(path: str, folder: str, store: Any) -> str:  # noqa: ANN401
    """Find a row's file in the store of the manifest: beside the manifest, from the root, or by a whole URL."""
    if "://" in path:
        place: str = store._strip_protocol(path)
        return place
    place = path if path.startswith("/") else f"{folder}/{path}"
    return place if "://" in place or isinstance(store, LocalFileSystem) else posixpath.normpath(place)
