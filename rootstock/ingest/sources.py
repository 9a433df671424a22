"""Open a source of images: a folder, archive or manifest on any fsspec store.

A source lists its items cheaply and reads only those requested. Archives are in archives.py, tables in manifests.py,
folders in folders.py.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec

from rootstock.config import params
from rootstock.images.inspection import Reason
from rootstock.ingest import archives, group_names, layout_choice, manifests, opening, samples, torchvision_sets
from rootstock.ingest.folders import Files, list_stamps, stamp_of
from rootstock.ingest.items import Item, with_problem
from rootstock.ingest.layout import Loader
from rootstock.ingest.layout_choice import Known
from rootstock.ingest.lookups import Lookups
from rootstock.ingest.opening import ARCHIVES, TABLES, Unreachable as Unreachable
from rootstock.ingest.scan import Scan
from rootstock.system import roots
from rootstock.system.errors import SourceError

GENERATED = {"sample": samples.check_name, "torchvision": torchvision_sets.check_name}


class Images(Protocol):
    """Listed images, which are read a few at a time."""

    @property
    def items(self) -> Sequence[Item]:
        """Return what is known of each image."""
        ...

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Item, Loader]]:
        """Yield the wanted items in order, each with a function that returns its bytes.

        The function may be called in any thread; it raises `Rejected` if the file cannot be read.
        """
        ...


class Source(Images, Protocol):
    """A listed source of images."""

    items: Sequence[Item]
    notes: list[str]
    layout: dict[str, Any]  # as recorded in the summary
    empty: tuple[str, ...]  # empty class folders

    @property
    def local(self) -> bool:
        """Whether the functions that return bytes can be sent to another process."""
        ...


@dataclass(frozen=True)
class SourceListing:
    """A source and its current listing; `source` is None if it is unreachable and its earlier images are kept.

    Images of an inbox stay (`stays`) after their files are moved; those of other sources go with their files.
    """

    spec: params.Source
    source: Source | None
    stays: bool = False


def are_multi_label(listed: Iterable[SourceListing], recorded: Mapping[str, Any]) -> bool:
    """Whether the images of the sources have any number of classes, as a table can say by a column `labels`.

    Args:
        listed: the sources; the inbox does not say which kind it is of.
        recorded: the summary of the dataset, which knows those that cannot be reached now.

    Raises:
        SourceError: some are of this kind, others have one class per image.
    """
    layouts = {source["name"]: source.get("layout", {}) for source in recorded.get("sources", [])}
    kinds: dict[bool, str] = {}
    for entry in listed:
        title = entry.spec.title()
        found = entry.source.layout if entry.source else layouts.get(title, {})
        if found:
            kinds.setdefault(found.get(manifests.MULTI_LABEL, False), title)
    if len(kinds) > 1:
        raise SourceError(
            f"ingest.sources: {kinds[True]} is multi-label (a column labels), and "
            f"{kinds[False]} has one class per image; expected the same of all sources. Give those of one class in a "
            "table with a column labels, too."
        )
    return kinds.get(True) is not None


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
    where = f"ingest.sources: {spec.path}"
    store, root = opening.open_existing(spec.path, where)
    with opening.translating_errors(where):
        # Of zip://::photos.zip, which is a folder, this is empty; photos.zip/ is one, too.
        name = "" if spec.path.endswith("/") else root.lower()
        if name.endswith(TABLES):
            return within_roots(manifests.list_manifest(spec, store, root, where, Lookups(scan, spec.path)))
        if name.endswith(ARCHIVES):
            opening.check_is_file(store, root, where)
            return archives.list_archive(spec, store, root, stamp_of(store.info(root)), scan, known)
        return within_roots(_folder(spec, store, root, known))


def within_roots(files: Files) -> Files:
    """Reject files outside the roots of this run, which a table or a link may point to."""
    if not roots.are_given():
        return files
    protocols = files.store.protocol
    protocol = protocols if isinstance(protocols, str) else protocols[0]
    outside = {item.path for item in files.items if roots.forbids(files.place(item.path), protocol)}
    files.items = with_problem(files.items, outside, Reason.UNSAFE_PATH)
    return files


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


def _folder(spec: params.Source, store: Any, root: str, known: Known, *, trusted: bool = False) -> Files:  # noqa: ANN401
    if not store.isdir(root):
        listed = ", ".join(ARCHIVES + TABLES)
        raise SourceError(f"ingest.sources: {spec.path} is a file; expected a folder, or a file ending in {listed}")
    stamps, place_of = list_stamps(store, root, spec.path)
    read = layout_choice.read_paths(stamps, spec, known, trusted=trusted)
    return Files(store, read.files.items, read.files.notes, place_of, read.layout, read.files.empty)
