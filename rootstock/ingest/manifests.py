"""Read CSV, TSV or Parquet tables with one row per image as sources."""

import codecs
import posixpath
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from rootstock.config import params
from rootstock.dataset import label_sets
from rootstock.images.inspection import MAX_FILE_BYTES, Reason
from rootstock.ingest import folder_names, layout
from rootstock.ingest.folders import Files, Info, file_infos, stamp_of
from rootstock.ingest.labels import clean
from rootstock.ingest.layout import SPLITS, Item
from rootstock.system import escape
from rootstock.system.causes import first_line
from rootstock.system.errors import SourceError

EXTENSIONS = (".csv", ".tsv", ".parquet")
TABLE, MULTI_LABEL = "table", "multi_label"  # the layout of such a source, in the summary
# Limits on the unpacked size of a Parquet table, in bytes and as a multiple of its packed size; each row counts with
# some overhead.
MAX_UNPACKED_BYTES, MAX_EXPANSION, ROW_BYTES, ROWS_PER_BATCH = 2**26, 20, 32, 1024
MAX_ROWS, MAX_COLUMNS, HEADER_BYTES = 2**21, 10_000, 2**16  # of a CSV
COLUMNS = ("path", "label", "labels", "domain", "split", "group")
LABELS = ("label", "labels")  # of which a table has one
ADDRESSES = ("path", "url", "image", "file", "filename")  # of images to classify: the first that a table has


def list_manifest(spec: params.Source, store: Any, root: str, data: bytes) -> Files:  # noqa: ANN401
    """List the images of a table with the columns path and label, and optionally domain, split and group.

    With a column labels in place of label, images have any number of classes: a list in Parquet, or text, `cat;dog`.

    Args:
        spec: the source.
        store: the store of the table and its images.
        root: the path of the table there.
        data: its bytes.

    Raises:
        SourceError: the table is not readable or lacks a column.
    """
    table, kind = _read(spec, root, data)
    rows = table.to_pylist()
    folder = root.rpartition("/")[0]
    places = {row["path"]: _place(row["path"], folder, store) for row in rows}
    infos = file_infos(store, set(places.values()))
    converted = _convert_backslashes(places, infos, folder, store)
    asked = [_split_of(row, spec) for row in rows]
    # As with folders: if no row is in the test split, for example, val becomes the test split.
    given = set(asked) if all(asked) else set()
    allowed = layout.resolve_splits(given) | {"": SPLITS}
    items, place_of = [], {}
    for row, split in zip(rows, asked, strict=True):
        place = places[row["path"]]
        path = posixpath.relpath(place, folder)  # no absolute path is recorded
        place_of[path] = place
        info, given_label = infos[place], row[kind]
        label = _label_of(given_label or "", kind)
        stamp = stamp_of(info) if info else ""
        domain = row.get("domain") or spec.domain
        group = clean(row.get("group") or "")
        items.append(Item(path, label, domain, allowed[split], stamp, _problem(label, given_label, kind, info), group))
    items.sort(key=lambda item: item.path)
    notes = layout.split_notes(given, "row")
    if converted:
        notes.append(f"{len(converted):,} paths have backslashes, read as slashes (e.g. {converted[0]})")
    layout_of: dict[str, Any]
    if kind == "label":
        layout_of = {"layout": TABLE, "classes": sorted({item.label for item in items if item.label})}
    else:
        layout_of = {"layout": TABLE, "classes": label_sets.classes_in(item.label for item in items), MULTI_LABEL: True}
        if bare := sum(not item.label and not item.problem for item in items):
            notes.append(f"images of none of the classes, as their list of labels is empty: {bare:,}")
    return Files(store, items, notes, place_of.__getitem__, layout_of)


@lru_cache(maxsize=100_000)
def _label_of(given: str, kind: str) -> str:
    """Normalise a label, or each of several."""
    if kind == "label":
        return clean(given)
    return label_sets.parse(given, clean)


def _problem(label: str, given_label: str | None, kind: str, info: Info | None) -> Reason | None:
    if info is None or info.get("type", "file") != "file":
        return Reason.UNREADABLE
    if (info.get("size") or 0) > MAX_FILE_BYTES:
        return Reason.TOO_LARGE
    return None if label or (kind == "labels" and given_label is not None) else Reason.NO_LABEL


def _read(spec: params.Source, root: str, data: bytes) -> tuple[pa.Table, str]:
    """Read the relevant columns as text; return also which of LABELS it has.

    Raises:
        SourceError: the table is damaged or empty, or a column is missing, duplicated or not text.
    """
    table, there = _parsed(spec.path, root, data, COLUMNS)
    kinds = [name for name in LABELS if name in there]
    if missing := [name for name, is_there in (("path", "path" in there), ("label", kinds)) if not is_there]:
        raise SourceError(f"{spec.path}: no column {missing[0]!r}; it has {', '.join(there)}.{_hint(root, there)}")
    if len(kinds) > 1:
        raise SourceError(
            f"{spec.path}: has the columns 'label' and 'labels'; expected one of them: label for one class per image, "
            "labels for any number."
        )
    if twice := [name for name in COLUMNS if there.count(name) > 1]:
        raise SourceError(f"{spec.path}: the column {twice[0]!r} appears twice; expected it once.")
    table = table.select([name for name in COLUMNS if name in there])
    for name in table.column_names:
        as_text = _as_label_sets if name == "labels" else _as_text
        table = table.set_column(table.column_names.index(name), name, as_text(table, name, spec.path))
    table = table.filter(pc.greater(pc.utf8_length(table["path"]), 0))
    if not len(table):
        raise SourceError(f"{spec.path}: lists no images; expected one row per image, with its path and label.")
    return table, kinds[0]


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
    # Labels such as 007 are names, not numbers.
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter)
    table = _unescape_cells(pyarrow.csv.read_csv(file, convert_options=convert, parse_options=parse), columns)
    return table, table.column_names


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
    limit, unpacked, batches = max(MAX_UNPACKED_BYTES, MAX_EXPANSION * packed), 0, []
    groups = (parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups))
    if sum(group.num_rows * ROW_BYTES for group in groups) > limit:
        raise ValueError(f"{parquet.metadata.num_rows:,} rows in {packed:,} bytes")
    for batch in parquet.iter_batches(ROWS_PER_BATCH, columns=names):
        unpacked += ROW_BYTES * len(batch) + sum(_text_bytes(column) for column in batch.columns)
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


def _unescape_cells(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Undo the escaping of cells in a table that was written for spreadsheets (escape.csv)."""
    for number, name in enumerate(table.column_names):
        values = table.column(number)  # by number, as names may repeat
        if name in columns and pc.any(pc.starts_with(values, "'")).as_py():
            true = [value and escape.from_cell(value) for value in values.to_pylist()]
            table = table.set_column(number, name, pa.array(true, pa.string()))
    return table


def _convert_backslashes(
    places: dict[str, str],
    infos: dict[str, Info | None],
    folder: str,
    store: Any,  # noqa: ANN401
) -> list[str]:
    """Look up paths with backslashes, as written on Windows, with slashes instead; return those found."""
    slashed = {path: path.replace("\\", "/") for path, place in places.items() if "\\" in path and infos[place] is None}
    converted = {path: _place(with_slashes, folder, store) for path, with_slashes in slashed.items()}
    found = file_infos(store, set(converted.values()))
    there = [path for path, place in converted.items() if found[place]]
    for path in there:
        places[path] = converted[path]
        infos[converted[path]] = found[converted[path]]
    return there


def _split_of(row: dict[str, str | None], spec: params.Source) -> str:
    """Return the split that a row asks for, or "" to have it drawn."""
    given = (row.get("split") or "").strip()
    split = folder_names.split_of(given)
    if given and not split:
        raise SourceError(f"{spec.path}: split of {row['path']} is {given!r}; expected train, val or test")
    return split


def _place(path: str, folder: str, store: Any) -> str:  # noqa: ANN401
    """Return the path of a row's file in the manifest's store, from a relative path, absolute path or full URL."""
    if "://" in path:
        place: str = store._strip_protocol(path)
        return place
    place = path if path.startswith("/") else f"{folder}/{path}"
    return place if "://" in place or isinstance(store, LocalFileSystem) else posixpath.normpath(place)
