"""Where images come from: folders, archives and manifests, on any store that fsspec reaches.

A source lists its items cheaply and reads those that are asked for. Listing an archive means reading its index (of
a compressed tar: all of it), so what was listed is remembered as long as the archive's own stamp stays.
"""

import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from rootstock import layout, params
from rootstock.errors import SourceError
from rootstock.images import MAX_FILE_BYTES, Reason, Rejected
from rootstock.layout import SPLITS, Item
from rootstock.scan import Scan

Loader = Callable[[], bytes]
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MANIFESTS = (".csv", ".tsv", ".parquet")
# The extra of pyproject.toml that brings the driver of a protocol.
EXTRA_OF = {
    "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "abfs": "azure", "abfss": "azure", "az": "azure",
    "http": "http", "https": "http", "sftp": "sftp", "ssh": "sftp",
}  # fmt: skip


class Source(Protocol):
    """Something that holds images."""

    items: list[Item]
    notes: list[str]

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Item, Loader]]:
        """Yield the items whose paths are wanted, in order, each with a function that gives its bytes.

        The function may be called in any thread; it raises `Rejected` where the file cannot be read.
        """
        ...


def open_source(spec: params.Source, scratch: Path, scan: Scan) -> Source | None:
    """List a source.

    Returns:
        The source; None where it is a sample or a torchvision set that is not laid out on this machine but was
        taken in before: nothing of it can have changed.

    Raises:
        SourceError: it cannot be reached, its driver is not installed, or it is not a source at all.
    """
    kind, _, name = spec.path.partition(":")
    if kind in ("sample", "torchvision") and not name.startswith("//"):
        return _generated(spec, kind, name, scratch)
    if spec.path.endswith(MANIFESTS):
        return _manifest(spec, *_reach(spec))
    if spec.path.lower().endswith(ARCHIVES):
        return _archive(spec, *_reach(spec), scan)
    return _folder(spec, *_reach(spec))


def generated(spec: params.Source, scratch: Path) -> Path | None:
    """Name the folder in which a sample or a torchvision set is laid out; None for sources that are somewhere."""
    kind, _, name = spec.path.partition(":")
    return scratch / kind / name if kind in ("sample", "torchvision") and not name.startswith("//") else None


def _generated(spec: params.Source, kind: str, name: str, scratch: Path) -> "Files":
    folder = scratch / kind / name
    if not folder.exists():
        if kind == "sample":
            from rootstock.samples import (
                write_sample,
            )  # imports scikit-learn: only when there is something to write

            write_sample(name, folder)
        else:
            from rootstock.torchvision_sets import write_torchvision_set

            write_torchvision_set(name, folder, scratch / "downloads")
    return _folder(spec, fsspec.filesystem("file"), str(folder.resolve()))


def _reach(spec: params.Source) -> tuple[Any, str]:
    """Open the store of a source and make sure that the source is there."""
    try:
        store, root = fsspec.core.url_to_fs(spec.path)
        there = store.exists(root)
    except (ImportError, ValueError) as error:
        protocol = spec.path.partition("://")[0]
        extra = EXTRA_OF.get(protocol)
        todo = (
            f"install its driver: pip install 'rootstock[{extra}]'"
            if extra
            else "expected a path or an fsspec URL"
        )
        raise SourceError(f"ingest.sources: {spec.path}: {todo} ({error})") from None
    except Exception as error:  # every driver has its own errors for a store that is not there
        raise SourceError(
            f"ingest.sources: {spec.path} cannot be reached: {type(error).__name__}: {error}"
        ) from error
    if not there:
        raise SourceError(
            f"ingest.sources: {spec.path} is not there. Name a folder, an archive or a manifest."
        )
    return store, root


def _stamp(info: dict[str, Any]) -> str:
    """Put together what changes when a file does: size and etag or modification time."""
    for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated"):
        if info.get(key):
            return f"{info['size']}:{info[key]}"
    return str(info["size"])


@dataclass
class Files:
    """Files of a store, one an item: a folder, or what a manifest names."""

    store: Any
    items: list[Item]
    notes: list[str]
    place: Callable[[str], str]  # path of an item -> path in the store

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Item, Loader]]:
        """Yield the wanted items; their bytes are read in the thread that asks for them."""
        for item in self.items:
            if item.path in wanted:
                yield item, lambda path=self.place(item.path): self._load(path)

    def _load(self, path: str) -> bytes:
        try:
            data: bytes = self.store.cat_file(path)
        except Exception:  # whatever the driver raises: this file cannot be had, the others can
            raise Rejected(Reason.UNREADABLE) from None
        return data


def _folder(spec: params.Source, store: Any, root: str) -> Files:  # noqa: ANN401
    if not store.isdir(root):
        known = ", ".join(ARCHIVES + MANIFESTS)
        raise SourceError(
            f"ingest.sources: {spec.path} is a file; expected a folder, or a file ending in {known}"
        )
    prefix = root.rstrip("/") + "/"
    found = store.find(root, detail=True)
    files = {path.removeprefix(prefix): _stamp(info) for path, info in found.items()}
    items, notes = layout.arrange(files, spec.domain)
    return Files(store, items, notes, lambda path: prefix + path)


def _manifest(spec: params.Source, store: Any, root: str) -> Files:  # noqa: ANN401
    """List what a CSV or Parquet file names: columns path and label, if it likes domain and split."""
    table = _read_manifest(spec, store, root)
    folder = root.rpartition("/")[0]
    places, items = {}, []
    for row in table.to_pylist():
        path = row["path"]
        place = path if path.startswith("/") else f"{folder}/{path}"
        path = path.removeprefix(folder + "/").lstrip("/")  # no absolute path gets into the data
        splits = SPLITS
        if row.get("split"):
            if row["split"].lower() not in layout.FOLDER_OF_SPLIT:
                raise SourceError(
                    f"{spec.path}: split of {path} is {row['split']!r}; expected train, val or test"
                )
            splits = (layout.FOLDER_OF_SPLIT[row["split"].lower()],)
        stamp, problem = "", None if row["label"] else Reason.NO_LABEL
        try:
            stamp = _stamp(store.info(place))
        except Exception:  # not there, or not for us: said in the table of rejected files, as any other
            problem = Reason.UNREADABLE
        places[path] = place
        items.append(Item(path, row["label"] or "", row.get("domain") or spec.domain, splits, stamp, problem))
    return Files(store, sorted(items, key=lambda item: item.path), [], places.__getitem__)


def _read_manifest(spec: params.Source, store: Any, root: str) -> pa.Table:  # noqa: ANN401
    columns = ("path", "label", "domain", "split")
    try:
        with store.open(root, "rb") as file:
            if spec.path.endswith(".parquet"):
                table = pq.read_table(file)
            else:  # labels such as 007 are names, not numbers
                convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
                parse = pyarrow.csv.ParseOptions(delimiter="\t" if spec.path.endswith(".tsv") else ",")
                table = pyarrow.csv.read_csv(file, convert_options=convert, parse_options=parse)
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{spec.path}: not a readable manifest: {error}") from None
    if missing := [name for name in ("path", "label") if name not in table.column_names]:
        raise SourceError(f"{spec.path}: no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    table = table.select([name for name in columns if name in table.column_names])
    return table.cast(pa.schema([(name, pa.string()) for name in table.column_names])).filter(
        pa.compute.is_valid(table["path"])
    )


@dataclass
class Archive:
    """The members of a zip or tar, read in their order."""

    store: Any
    root: str
    items: list[Item]
    notes: list[str] = field(default_factory=list)

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Item, Loader]]:
        """Yield the wanted members; their bytes are read here, in one pass, as the archive allows no other way."""
        by_path = {item.path: item for item in self.items if item.path in wanted}
        if not by_path:
            return
        with self.store.open(self.root, "rb") as file:
            for path, load in (_zip_members if self.root.lower().endswith(".zip") else _tar_members)(file):
                if item := by_path.pop(path, None):
                    yield item, _loaded(load)


def _loaded(load: Callable[[], bytes]) -> Loader:
    """Read a member now, and give its bytes, or the reason why there are none, when asked."""
    try:
        data = load()
    except Exception:  # a broken member (bad checksum, cut stream, unknown compression) is one file's fault
        return _unreadable
    return lambda: data


def _unreadable() -> bytes:
    raise Rejected(Reason.UNREADABLE)


def _zip_members(file: Any) -> Iterator[tuple[str, Callable[[], bytes]]]:  # noqa: ANN401
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, lambda member=member: archive.read(member)


def _tar_members(file: Any) -> Iterator[tuple[str, Callable[[], bytes]]]:  # noqa: ANN401
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            if not member.isdir():
                yield member.name, lambda member=member: archive.extractfile(member).read()  # type: ignore[union-attr]


def _archive(spec: params.Source, store: Any, root: str, scan: Scan) -> Archive:  # noqa: ANN401
    stamp = _stamp(store.info(root))
    sizes = scan.listing(spec.path, stamp)
    if sizes is None:
        try:
            with store.open(root, "rb") as file:
                sizes = (_zip_sizes if root.lower().endswith(".zip") else _tar_sizes)(file)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise SourceError(f"ingest.sources: {spec.path} is not a readable archive: {error}") from None
        scan.remember_listing(spec.path, stamp, sizes)
    safe = {
        path: f"{size}:{stamp}"
        for path, size in sizes.items()
        if size is not None and not layout.is_unsafe(path)
    }
    items, notes = layout.arrange(safe, spec.domain)
    items = [
        item if item.problem or sizes[item.path] <= MAX_FILE_BYTES else _with(item, Reason.TOO_LARGE)
        for item in items
    ]
    unsafe = [path for path in sizes if path not in safe and not layout.is_litter(path.lstrip("./"))]
    items += [Item(path, "", spec.domain, SPLITS, stamp, Reason.UNSAFE_PATH) for path in unsafe]
    return Archive(store, root, items, notes)


def _with(item: Item, problem: Reason) -> Item:
    return Item(item.path, item.label, item.domain, item.splits, item.stamp, problem)


def _zip_sizes(file: Any) -> dict[str, int | None]:  # noqa: ANN401
    """Name the members with their unpacked sizes; None marks what is not a plain file (a link stored in a zip)."""
    with zipfile.ZipFile(file) as archive:
        return {
            member.filename: None if (member.external_attr >> 16) & 0o170000 == 0o120000 else member.file_size
            for member in archive.infolist()
            if not member.is_dir()
        }


def _tar_sizes(file: Any) -> dict[str, int | None]:  # noqa: ANN401
    """Name the members with their sizes; None marks links, devices and the like."""
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        return {
            member.name: member.size if member.isfile() else None for member in archive if not member.isdir()
        }
