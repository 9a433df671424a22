"""Where images come from: folders, archives and manifests, on any store that fsspec reaches.

A source lists its items cheaply and reads those that are asked for. Archives are in rootstock/archives.py, files of a
store in rootstock/folders.py.
"""

import posixpath
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from rootstock import archives, escape, layout, params, samples, torchvision_sets
from rootstock.addresses import EXTRA_OF, check_protocols, links
from rootstock.errors import SourceError
from rootstock.folders import Files, describe, find, named, stamp_of
from rootstock.intake import MAX_FILE_BYTES, Reason
from rootstock.layout import SPLITS, Item, Loader
from rootstock.scan import Scan
from rootstock.stores import open_store

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MANIFESTS = (".csv", ".tsv", ".parquet")
GENERATED = {"sample": samples.check_name, "torchvision": torchvision_sets.check_name}


class Unreachable(SourceError):  # noqa: N818 - it may pass
    """A source that cannot be reached now; what it brought before can stay."""


class Source(Protocol):
    """Something that holds images."""

    items: list[Item]
    notes: list[str]

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Item, Loader]]:
        """Yield the items whose paths are wanted, in order, each with a function that gives its bytes.

        The function may be called in any thread; it raises `Rejected` where the file cannot be read.
        """
        ...


def open_source(spec: params.Source, scratch: Path, scan: Scan) -> Source:
    """List a source; a sample or a torchvision set is laid out in `scratch` first.

    Raises:
        Unreachable: it is not there, its store does not answer, or the driver of its store is not installed.
        SourceError: what is there is not a source.
    """
    if folder := generated(spec, scratch):
        _lay_out(folder, scratch)
        return _folder(spec, fsspec.filesystem("file"), str(folder.resolve()))
    store, root = _reach(spec)
    try:
        if spec.path.lower().endswith(MANIFESTS):
            return _manifest(spec, store, root)
        if spec.path.lower().endswith(ARCHIVES):
            return archives.list_archive(spec, store, root, stamp_of(store.info(root)), scan)
        return _folder(spec, store, root)
    except SourceError:
        raise
    except Exception as error:  # every driver has its own errors for a store that does not answer
        raise _unreachable(spec, error) from error


def generated(spec: params.Source, scratch: Path) -> Path | None:
    """Name the folder in which a sample or a torchvision set is laid out; None for sources that are somewhere.

    Raises:
        SourceError: there is no such sample or set.
    """
    kind, _, name = spec.path.partition(":")
    if kind not in GENERATED or name.startswith("//"):
        return None
    GENERATED[kind](name)  # the name becomes a folder's
    return scratch / kind / name


def _lay_out(folder: Path, scratch: Path) -> None:
    if folder.exists():
        return
    if folder.parent.name == "sample":
        samples.write_sample(folder.name, folder)
    else:
        torchvision_sets.write_torchvision_set(folder.name, folder, scratch / "downloads")


def _reach(spec: params.Source) -> tuple[Any, str]:
    """Open the store of a source and make sure that the source is there."""
    try:
        check_protocols(spec.path)
    except ValueError as error:
        raise SourceError(f"ingest.sources: {spec.path}: expected a path or an fsspec URL; {error}") from None
    try:
        store, root = open_store(spec.path)
        there = store.exists(root)
    except (ImportError, ValueError) as error:
        extra = next((EXTRA_OF[link.protocol] for link in links(spec.path) if link.protocol in EXTRA_OF), None)
        todo = (
            f"its driver is the extra {extra}: pip install -c constraints.txt -e '.[{extra}]'"
            if extra
            else "expected a path or an fsspec URL"
        )
        raise Unreachable(f"ingest.sources: {spec.path}: {todo} ({error})") from None
    except Exception as error:
        raise _unreachable(spec, error) from error
    if not there:
        raise Unreachable(f"ingest.sources: {spec.path} is not there. Name a folder, an archive or a manifest.")
    return store, root


def _unreachable(spec: params.Source, error: Exception) -> Unreachable:
    return Unreachable(f"ingest.sources: {spec.path} cannot be reached: {type(error).__name__}: {error}")


def _folder(spec: params.Source, store: Any, root: str) -> Files:  # noqa: ANN401
    if not store.isdir(root):
        known = ", ".join(ARCHIVES + MANIFESTS)
        raise SourceError(f"ingest.sources: {spec.path} is a file; expected a folder, or a file ending in {known}")
    infos, place_of = named(find(store, root), root, spec.path)
    items, notes = layout.arrange({path: stamp_of(info) for path, info in infos.items()}, spec.domain)
    items = layout.without_huge(items, lambda path: infos[path].get("size"))
    return Files(store, items, notes, place_of)


def _manifest(spec: params.Source, store: Any, root: str) -> Files:  # noqa: ANN401
    """List what a CSV or Parquet file names: columns path and label, if it likes domain and split."""
    rows = _read_manifest(spec, store, root).to_pylist()
    folder = root.rpartition("/")[0]
    places = {row["path"]: _place(row["path"], folder, store) for row in rows}
    infos = describe(store, set(places.values()))
    asked = [_split_of(row, spec) for row in rows]
    # As with folders: where the rows name no test split, say, the one they do name for validation is it.
    given = set(asked) if all(asked) else set()
    meaning = layout.meaning_of(given)
    items, place_of = [], {}
    for row, split in zip(rows, asked, strict=True):
        place = places[row["path"]]
        path = posixpath.relpath(place, folder)  # no absolute path gets into the data
        place_of[path] = place
        info, problem = infos[place], None if row["label"] else Reason.NO_LABEL
        if info is None or info.get("type", "file") != "file":
            problem = Reason.UNREADABLE
        elif (info.get("size") or 0) > MAX_FILE_BYTES:
            problem = Reason.TOO_LARGE
        stamp = stamp_of(info) if info else ""
        splits = meaning[split] if split else SPLITS
        items.append(Item(path, row["label"] or "", row.get("domain") or spec.domain, splits, stamp, problem))
    items.sort(key=lambda item: item.path)
    return Files(store, items, layout.note_on(given, "row"), place_of.__getitem__)


def _read_manifest(spec: params.Source, store: Any, root: str) -> pa.Table:  # noqa: ANN401
    columns = ("path", "label", "domain", "split")
    try:
        with store.open(root, "rb") as file:
            if root.lower().endswith(".parquet"):
                parquet = pq.ParquetFile(file)  # pq.read_table would import pandas
                there = parquet.schema_arrow.names
                table = parquet.read(columns=[name for name in columns if name in there])
            else:  # labels such as 007 are names, not numbers
                convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
                parse = pyarrow.csv.ParseOptions(delimiter="\t" if root.lower().endswith(".tsv") else ",")
                table = _from_cells(pyarrow.csv.read_csv(file, convert_options=convert, parse_options=parse), columns)
                there = table.column_names
    except pa.ArrowInvalid as error:
        raise SourceError(f"{spec.path}: not a readable manifest: {error}") from None
    if missing := [name for name in ("path", "label") if name not in there]:
        raise SourceError(f"{spec.path}: no column {missing[0]!r}; it has {', '.join(there)}")
    table = table.select([name for name in columns if name in there])
    table = table.cast(pa.schema([(name, pa.string()) for name in table.column_names]))
    return table.filter(pc.greater(pc.utf8_length(table["path"]), 0))


def _from_cells(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Give the names for which a table that was made for spreadsheets stands (escape.csv)."""
    for number, name in enumerate(table.column_names):
        values = table[name]
        if name in columns and pc.any(pc.starts_with(values, "'")).as_py():
            true = [value and escape.from_cell(value) for value in values.to_pylist()]
            table = table.set_column(number, name, pa.array(true, pa.string()))
    return table


def _split_of(row: dict[str, str | None], spec: params.Source) -> str:
    """Name the split that a row asks for; nothing where it leaves that to the draw."""
    given = row.get("split") or ""
    if given and given.lower() not in layout.FOLDER_OF_SPLIT:
        raise SourceError(f"{spec.path}: split of {row['path']} is {given!r}; expected train, val or test")
    return layout.FOLDER_OF_SPLIT.get(given.lower(), "")


def _place(path: str, folder: str, store: Any) -> str:  # noqa: ANN401
    """Find a row's file in the store of the manifest: beside the manifest, from the root, or by a whole URL."""
    if "://" in path:
        place: str = store._strip_protocol(path)
        return place
    place = path if path.startswith("/") else f"{folder}/{path}"
    return place if "://" in place or isinstance(store, LocalFileSystem) else posixpath.normpath(place)
