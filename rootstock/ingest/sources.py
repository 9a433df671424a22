"""Open a source of images: a folder, archive or manifest on any fsspec store.

A source lists its items cheaply and reads only those requested. Archives are in archives.py, tables in manifests.py,
folders in folders.py.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rootstock.config import params
from rootstock.images.inspection import MAX_FILE_BYTES, Reason
from rootstock.ingest import archives, group_names, layout, layout_choice, manifests, samples, torchvision_sets
from rootstock.ingest.folders import Files, find, relative_paths, stamp_of
from rootstock.ingest.layout import Item, Loader
from rootstock.ingest.layout_choice import Known
from rootstock.ingest.scan import Scan
from rootstock.system import roots, stores
from rootstock.system.addresses import EXTRA_OF, links
from rootstock.system.availability import is_missing, is_unavailable
from rootstock.system.errors import SourceError
from rootstock.system.stores import open_store

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MANIFESTS = manifests.EXTENSIONS
GENERATED = {"sample": samples.check_name, "torchvision": torchvision_sets.check_name}


class Unreachable(SourceError):  # noqa: N818 - may be temporary
    """A source that does not exist or cannot be reached; its earlier images can stay.

    Other errors are not included: a broken source would silently keep its old labels in a run that succeeds.
    """


class Source(Protocol):
    """A listed source of images."""

    items: list[Item]
    notes: list[str]
    layout: dict[str, Any]  # as recorded in the summary
    empty: tuple[str, ...]  # empty class folders

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Item, Loader]]:
        """Yield the wanted items in order, each with a function that returns its bytes.

        The function may be called in any thread; it raises `Rejected` if the file cannot be read.
        """
        ...


@dataclass(frozen=True)
class SourceListing:
    """A source and its current listing; `source` is None if it is unreachable and its earlier images are kept.

    Images of an inbox stay (`stays`) after their files are moved; those of other sources go with their files.
    """

    spec: params.Source
    source: Source | None
    stays: bool = False


def open_source(spec: params.Source, scratch: Path, scan: Scan, known: Known | None = None) -> Source:
    """List a source; a sample or torchvision dataset is first written to `scratch`.

    Args:
        spec: the source.
        scratch: folder for generated and downloaded files.
        scan: caches archive listings.
        known: the recorded layout, which is kept.

    Raises:
        Unreachable: it does not exist, its store cannot be reached, or the driver of its store is not installed.
        SourceError: it is not a valid source, or must not be read; or its `group` matches no path.
    """
    source = _list(spec, scratch, scan, known or Known())
    where = f"ingest.sources: {spec.path}: group"
    source.items = group_names.name_groups(source.items, spec.group, where)
    if mismatch := group_names.describe_mismatch(source.items, spec.group, where):
        raise SourceError(mismatch)
    if note := group_names.describe_groups(source.items):
        source.notes.append(note)
    return source


def _list(spec: params.Source, scratch: Path, scan: Scan, known: Known) -> Source:
    """List a source, with the group names that its table has."""
    if folder := generated(spec, scratch):
        _lay_out(folder, scratch)
        return _folder(spec, fsspec.filesystem("file"), str(folder.resolve()), known, trusted=True)
    store, root = _open(spec)
    with _translating_errors(spec):
        if spec.path.lower().endswith(MANIFESTS):
            return _within_roots(manifests.list_manifest(spec, store, root, _read_table(spec, store, root)))
        if spec.path.lower().endswith(ARCHIVES):
            _check_is_file(spec, store, root)
            return archives.list_archive(spec, store, root, stamp_of(store.info(root)), scan, known)
        return _within_roots(_folder(spec, store, root, known))


def _within_roots(files: Files) -> Files:
    """Reject files outside the roots of this run, which a table or a link may point to."""
    protocols = files.store.protocol
    protocol = protocols if isinstance(protocols, str) else protocols[0]
    files.items = [
        replace(item, problem=Reason.UNSAFE_PATH) if roots.forbids(files.place(item.path), protocol) else item
        for item in files.items
    ]
    return files


@contextmanager
def _translating_errors(spec: params.Source, passed_on: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn driver errors into Unreachable or SourceError; `passed_on` errors are raised unchanged."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (SourceError, *passed_on)):
            raise
        # fsspec reports every error of a web server as not found; its cause says more.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        message = f"{type(cause).__name__}: {cause}"
        if is_unavailable(error):
            raise Unreachable(f"ingest.sources: {spec.path} cannot be reached: {message}") from error
        raise SourceError(f"ingest.sources: {spec.path} exists but cannot be read: {message}") from error


def _read_table(spec: params.Source, store: Any, root: str) -> bytes:  # noqa: ANN401
    _check_is_file(spec, store, root)
    with store.open(root, "rb") as file:
        content = stores.read(file, MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        size = store.info(root).get("size") or len(content)
        raise SourceError(
            f"ingest.sources: {spec.path} holds {size:,} bytes; expected a table of at most {MAX_FILE_BYTES:,}. "
            "Split it into several sources."
        )
    return content


def _check_is_file(spec: params.Source, store: Any, root: str) -> None:  # noqa: ANN401
    if store.isdir(root):
        kind = "table" if spec.path.lower().endswith(MANIFESTS) else "archive"
        raise SourceError(
            f"ingest.sources: {spec.path} is a folder, but is named like {'an' if kind == 'archive' else 'a'} {kind}. "
            "Rename the folder, or set the path of the file."
        )
    if store.info(root).get("type") == "other":
        raise SourceError(f"ingest.sources: {spec.path} is a pipe or a device; expected a file.")


def generated(spec: params.Source, scratch: Path) -> Path | None:
    """Return the folder that a sample or torchvision dataset is written to; None for other sources.

    Raises:
        SourceError: there is no such sample or dataset.
    """
    kind, _, name = spec.path.partition(":")
    if kind not in GENERATED or name.startswith("//"):
        return None
    GENERATED[kind](name)  # checks the name, which becomes a folder name
    return scratch / kind / name


def _lay_out(folder: Path, scratch: Path) -> None:
    if folder.exists():
        return
    if folder.parent.name == "sample":
        samples.write_sample(folder.name, folder)
    else:
        torchvision_sets.write_torchvision_set(folder.name, folder, scratch / "downloads")


def _open(spec: params.Source) -> tuple[Any, str]:
    """Open the store of a source and check that the source exists."""
    try:
        with _translating_errors(spec, passed_on=(ImportError, ValueError)):
            store, root = open_store(spec.path)
    except ImportError as error:
        extra = next((EXTRA_OF[link.protocol] for link in links(spec.path) if link.protocol in EXTRA_OF), None)
        todo = f": pip install -c constraints.txt -e '.[{extra}]'" if extra else ""
        raise Unreachable(f"ingest.sources: {spec.path}: its driver is not installed{todo} ({error})") from None
    except ValueError as error:
        raise SourceError(f"ingest.sources: {spec.path}: expected a path or an fsspec URL; {error}") from None
    with _translating_errors(spec):
        try:
            _check_exists(store, root)
        except FileNotFoundError as error:
            if not is_missing(error):
                raise
            raise Unreachable(
                f"ingest.sources: {spec.path} does not exist. Expected a folder, an archive or a manifest."
            ) from None
    return store, root


def _check_exists(store: Any, root: str) -> None:  # noqa: ANN401
    """Raise the actual error if a source cannot be accessed; `exists` would only return False."""
    if isinstance(store, LocalFileSystem):
        Path(root).stat()
    elif not store.exists(root):
        store.info(root)


def _folder(spec: params.Source, store: Any, root: str, known: Known, *, trusted: bool = False) -> Files:  # noqa: ANN401
    if not store.isdir(root):
        listed = ", ".join(ARCHIVES + MANIFESTS)
        raise SourceError(f"ingest.sources: {spec.path} is a file; expected a folder, or a file ending in {listed}")
    infos, place_of = relative_paths(find(store, root), root, spec.path)
    stamps = {path: stamp_of(info) for path, info in infos.items()}
    read = layout_choice.read_paths(stamps, spec, known, trusted=trusted)
    items = layout.mark_too_large(read.files.items, lambda path: infos[path].get("size"))
    return Files(store, items, read.files.notes, place_of, read.layout, read.files.empty)
