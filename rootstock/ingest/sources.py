"""Where images come from: folders, archives and manifests, on any store that fsspec reaches.

A source lists its items cheaply and reads those that are asked for. Archives are in archives.py, tables in
manifests.py, files of a store in folders.py.
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
from rootstock.ingest import archives, layout, layouts, manifests, samples, torchvision_sets
from rootstock.ingest.folders import Files, find, named, stamp_of
from rootstock.ingest.layout import Item, Loader
from rootstock.ingest.layouts import Known
from rootstock.ingest.scan import Scan
from rootstock.system import roots, stores
from rootstock.system.addresses import EXTRA_OF, links
from rootstock.system.availability import is_missing, is_unavailable
from rootstock.system.errors import SourceError
from rootstock.system.stores import open_store

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MANIFESTS = manifests.EXTENSIONS
GENERATED = {"sample": samples.check_name, "torchvision": torchvision_sets.check_name}


class Unreachable(SourceError):  # noqa: N818 - it may pass
    """A source that is not there, or behind a network that does not answer; what it brought before can stay.

    Nothing else is: a mistake in what is there would leave the old labels in place, in a run that ends well.
    """


class Source(Protocol):
    """Something that holds images."""

    items: list[Item]
    notes: list[str]
    layout: dict[str, Any]  # how it was read, as the summary keeps it
    empty: tuple[str, ...]  # class folders that hold nothing

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Item, Loader]]:
        """Yield the items whose paths are wanted, in order, each with a function that gives its bytes.

        The function may be called in any thread; it raises `Rejected` where the file cannot be read.
        """
        ...


@dataclass(frozen=True)
class SourceListing:
    """A source and what it offers now; `source` is None where it is away and its earlier images stay.

    Images of an inbox stay (`stays`) when their files have left it; those of another source leave with their files.
    """

    spec: params.Source
    source: Source | None
    stays: bool = False


def open_source(spec: params.Source, scratch: Path, scan: Scan, known: Known | None = None) -> Source:
    """List a source; a sample or a torchvision set is laid out in `scratch` first.

    Args:
        spec: the source.
        scratch: for what is generated or downloaded.
        scan: remembers what archives hold.
        known: what the data set has of its layout, which is kept.

    Raises:
        Unreachable: it is not there, its store does not answer, or the driver of its store is not installed.
        SourceError: what is there is not a source, or may not be read.
    """
    known = known or Known()
    if folder := generated(spec, scratch):
        _lay_out(folder, scratch)
        return _folder(spec, fsspec.filesystem("file"), str(folder.resolve()), known, certain=True)
    store, root = _reach(spec)
    with _reaching(spec):
        if spec.path.lower().endswith(MANIFESTS):
            return _within_roots(manifests.list_manifest(spec, store, root, _content(spec, store, root)))
        if spec.path.lower().endswith(ARCHIVES):
            _expect_a_file(spec, store, root)
            return archives.list_archive(spec, store, root, stamp_of(store.info(root)), scan, known)
        return _within_roots(_folder(spec, store, root, known))


def _within_roots(files: Files) -> Files:
    """Turn away what lies elsewhere than this run may reach: a table names it, or a link leads there."""
    protocols = files.store.protocol
    protocol = protocols if isinstance(protocols, str) else protocols[0]
    files.items = [
        replace(item, problem=Reason.UNSAFE_PATH) if roots.forbids(files.place(item.path), protocol) else item
        for item in files.items
    ]
    return files


@contextmanager
def _reaching(spec: params.Source, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Tell a store that does not answer from what is wrong with what is there; some errors are left as they are."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (SourceError, *but)):
            raise
        # fsspec says of every answer of a web server that nothing is there; what caused that says more.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        said = f"{type(cause).__name__}: {cause}"
        if is_unavailable(error):
            raise Unreachable(f"ingest.sources: {spec.path} cannot be reached: {said}") from error
        raise SourceError(f"ingest.sources: {spec.path} is there and cannot be read: {said}") from error


def _content(spec: params.Source, store: Any, root: str) -> bytes:  # noqa: ANN401
    _expect_a_file(spec, store, root)
    with store.open(root, "rb") as file:
        content = stores.read(file, MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        size = store.info(root).get("size") or len(content)
        raise SourceError(
            f"ingest.sources: {spec.path} holds {size:,} bytes; expected a table of {MAX_FILE_BYTES:,} at most. "
            "Divide it into several sources."
        )
    return content


def _expect_a_file(spec: params.Source, store: Any, root: str) -> None:  # noqa: ANN401
    if store.isdir(root):
        kind = "table" if spec.path.lower().endswith(MANIFESTS) else "archive"
        raise SourceError(
            f"ingest.sources: {spec.path} is a folder, and is named as {'an' if kind == 'archive' else 'a'} {kind}. "
            "Rename the folder, or name the file."
        )
    if store.info(root).get("type") == "other":
        raise SourceError(f"ingest.sources: {spec.path} is a pipe or a device; expected a file.")


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
        with _reaching(spec, but=(ImportError, ValueError)):
            store, root = open_store(spec.path)
    except ImportError as error:
        extra = next((EXTRA_OF[link.protocol] for link in links(spec.path) if link.protocol in EXTRA_OF), None)
        todo = f"the extra {extra}: pip install -c constraints.txt -e '.[{extra}]'" if extra else "not installed"
        raise Unreachable(f"ingest.sources: {spec.path}: its driver is {todo} ({error})") from None
    except ValueError as error:
        raise SourceError(f"ingest.sources: {spec.path}: expected a path or an fsspec URL; {error}") from None
    with _reaching(spec):
        try:
            _look(store, root)
        except FileNotFoundError as error:
            if not is_missing(error):
                raise
            raise Unreachable(
                f"ingest.sources: {spec.path} is not there. Name a folder, an archive or a manifest."
            ) from None
    return store, root


def _look(store: Any, root: str) -> None:  # noqa: ANN401
    """Raise what keeps a source from being seen; `exists` says of all that it is not there."""
    if isinstance(store, LocalFileSystem):
        Path(root).stat()
    elif not store.exists(root):
        store.info(root)


def _folder(spec: params.Source, store: Any, root: str, known: Known, *, certain: bool = False) -> Files:  # noqa: ANN401
    if not store.isdir(root):
        listed = ", ".join(ARCHIVES + MANIFESTS)
        raise SourceError(f"ingest.sources: {spec.path} is a file; expected a folder, or a file ending in {listed}")
    infos, place_of = named(find(store, root), root, spec.path)
    stamps = {path: stamp_of(info) for path, info in infos.items()}
    read = layouts.read(stamps, spec, known, certain=certain)
    items = layout.without_huge(read.arranged.items, lambda path: infos[path].get("size"))
    return Files(store, items, read.arranged.notes, place_of, read.layout, read.arranged.empty)
