"""The layout of a source: what a person says it is, else what the data set has kept, else what is decided now."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from posixpath import commonpath
from typing import Any

from rootstock.config import params
from rootstock.ingest import deciding
from rootstock.ingest.folder_names import masks_among, split_of
from rootstock.ingest.folder_tree import FEW, tree
from rootstock.ingest.labels import clean, look
from rootstock.ingest.layout import (
    ANY,
    CLASS_FOLDERS,
    NAMED,
    SPLIT_FOLDERS,
    Arranged,
    Layout,
    Listing,
    Parts,
    arrange,
    parts_of,
)
from rootstock.ingest.undecided import Undecided
from rootstock.system.errors import SourceError

log = logging.getLogger(__name__)
MISFITS = 5  # so many images that lie elsewhere, and more than a few of all, are no oversight
CLASSES_SHOWN = 12
# What the folders train, val and test were called that data sets knew before layouts were kept.
ONCE = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What the data set has of a source: how it was laid out, and, where that is not kept, its labels by path."""

    layout: Mapping[str, Any] | None = None
    labels: Callable[[], dict[str, str]] | None = None


@dataclass(frozen=True)
class Read:
    """A listing as it was read, and the layout it was read by, as the summary keeps it."""

    arranged: Arranged
    layout: dict[str, Any]


def read(stamps: dict[str, str], spec: params.Source, known: Known, *, certain: bool = False) -> Read:
    """Read labels and splits off the paths of a folder or an archive.

    Args:
        stamps: of its files, by path; a path that ends in a slash is a folder that holds nothing.
        spec: the source, with what a person says of its layout.
        known: what the data set has of it.
        certain: Rootstock has laid it out: whatever the names of its classes, they are classes.

    Raises:
        SourceError: it could be read in two ways, or many images lie where the layout has no classes.
    """
    listing = Listing.of(stamps)
    images = listing.images()
    given = spec.layout_given() or ({"layout": spec.layout} if certain else {})
    layout = _layout(listing, images, stamps, spec, known, certain=certain)
    arranged = arrange(listing, stamps, spec.domain, layout)
    if not given and len(arranged.misfits) >= MISFITS and len(arranged.misfits) > FEW * sum(images.values()):
        raise _many_misfits(arranged, layout, sum(images.values()), spec)
    return Read(arranged, to_json(layout, arranged, spec.layout_given()))


def to_json(layout: Layout, arranged: Arranged, given: dict[str, Any]) -> dict[str, Any]:
    """Spell out what the summary keeps: the layout, the classes found by it, what a person had said of it."""
    classes = sorted({item.label for item in arranged.items if item.label} | set(arranged.empty))
    return layout.to_json() | {"classes": classes} | ({"given": given} if given else {})


def say(layout: Mapping[str, Any], title: str) -> str:
    """Say in a line how a source is read, for the log."""
    classes = layout["classes"]
    named = ", ".join(classes[:CLASSES_SHOWN]) + (", ..." if len(classes) > CLASSES_SHOWN else "")
    how = _from_json(layout).say() if layout["layout"] in (CLASS_FOLDERS, SPLIT_FOLDERS) else "a table"
    return f"{title}: {how}; {len(classes)} {'class' if len(classes) == 1 else 'classes'}: {named or 'none'}"


def _from_json(kept: Mapping[str, Any]) -> Layout:
    return Layout(kept.get("classes_at", ""), kept.get("splits", {}))


def _layout(
    listing: Listing,
    images: Mapping[Parts, int],
    stamps: dict[str, str],
    spec: params.Source,
    known: Known,
    *,
    certain: bool,
) -> Layout:
    given, kept = spec.layout_given(), known.layout
    if given:
        return _given(images, spec)
    if kept and kept["layout"] in (CLASS_FOLDERS, SPLIT_FOLDERS) and not kept.get("given"):
        layout = _from_json(kept)
        if not images or any(layout.root_of(parts) for parts in images):
            if not certain:
                deciding.check_new_classes(images, layout, kept["classes"], spec.path)
            return layout
        log.warning(
            "%s: none of its images lies where they did (%s): its layout is decided anew", spec.path, layout.say()
        )
    if certain:
        return _once(images)
    if known.labels is None:
        return deciding.decide(images, spec.path)
    return _as_before(listing, images, stamps, spec, known.labels())


def _given(images: Mapping[Parts, int], spec: params.Source) -> Layout:
    """Return the layout that a person names."""
    within = parts_of(spec.classes_at or "")
    if spec.splits:
        layout = Layout(splits={"/".join((*within, *parts_of(at))): split for at, split in sorted(spec.splits.items())})
    elif spec.layout == SPLIT_FOLDERS:
        layout = deciding.split_folders(images, within)
        if not layout.splits:
            raise SourceError(
                f"ingest.sources: {spec.path}: its layout is split_folders, and no folder is named as a split. "
                "Name them in ingest.sources[].splits, e.g. {training_set: train, test_set: test}."
            )
    elif spec.classes_at is not None:
        layout = Layout("/".join(within))
    else:
        shared, _ = deciding.below_shared(tree(images))
        layout = Layout("/".join(shared))
    if images and not any((found := layout.root_of(parts)) and len(parts) > len(found[0]) for parts in images):
        raise SourceError(
            f"ingest.sources: {spec.path}: no image lies in a class folder by the layout that is given "
            f"({layout.say()}); images lie in {_folders(images)}."
        )
    return layout


def _as_before(
    listing: Listing, images: Mapping[Parts, int], stamps: dict[str, str], spec: params.Source, labels: dict[str, str]
) -> Layout:
    """Find the layout by which a data set was made that did not keep it: one that gives the labels it has."""

    def agrees(layout: Layout) -> bool:
        items = arrange(listing, stamps, spec.domain, layout).items
        return all(item.label == clean(labels[item.path]) for item in items if item.path in labels)

    try:
        decided, doubt = deciding.decide(images, spec.path), None
        if agrees(decided):
            return decided
    except Undecided as error:
        decided, doubt = None, error
    if agrees(before := _once(images)):
        if doubt:
            log.warning("%s The data set has read it as %s, and goes on so.", doubt, before.say())
        return before
    if doubt:
        raise doubt
    assert decided is not None
    return decided


def _once(images: Mapping[Parts, int]) -> Layout:
    """Decide as was done before layouts were kept: by the folders that all images share, and train, val and test."""
    paths = list(images)
    shared = 0
    while paths and all(len(parts) >= shared + 2 and parts[shared] == paths[0][shared] for parts in paths):
        if paths[0][shared].lower() in ONCE:
            break
        shared += 1
    below = [parts[shared:] for parts in paths]
    named = {parts[0]: ONCE.get(parts[0].lower(), "") for parts in below if parts}
    given = {named[parts[0]] for parts in below if len(parts) > 1} - {""}
    at = paths[0][:shared] if paths else ()
    if "train" not in given or set(named.values()) == {"train", ""}:
        return Layout("/".join(at))
    return Layout(splits={"/".join((*at, name)): split for name, split in named.items() if split})


def _many_misfits(arranged: Arranged, layout: Layout, images: int, spec: params.Source) -> SourceError:
    lost = arranged.misfits
    folders = sorted({parts_of(path.rpartition("/")[0]) for path in lost})
    taken_in = _with_misfits(layout, folders, {look(item.label) for item in arranged.items if item.label})
    ways = [f"{taken_in.as_parameter()}, to take them in"] if taken_in else []
    return SourceError(
        f"ingest.sources: {spec.path}: {len(lost)} of {images} images lie outside its {layout.say()}: in "
        f"{_folders(dict.fromkeys(folders, 1))} (e.g. {lost[0]}). Say what they are by ingest.sources[].layout, "
        f"classes_at or splits: {'; '.join([*ways, f'{layout.as_parameter()}, to leave them out'])}."
    )


def _with_misfits(layout: Layout, lost: list[Parts], classes: set[str]) -> Layout | None:
    """Find the layout that takes in what lies outside of one, too: folders beside its roots, with classes in them.

    Args:
        layout: the one.
        lost: folders outside of it.
        classes: how its labels look.
    """
    roots = list(layout.roots)
    if masks_among({part for parts in lost for part in parts} - {part for root in roots for part in root}):
        return None
    if layout.splits:
        above = parts_of(commonpath(["/".join(root[:-1]) for root in roots]))
        n = len(above)
        if not all(parts[:n] == above and len(parts) > n + 1 and look(parts[n + 1]) in classes for parts in lost):
            return None
        new = {"/".join(parts[: n + 1]): split_of(parts[n]) or "train" for parts in lost}
        return Layout(splits=layout.splits | new)
    [root] = roots
    if any(len(parts) <= len(root) for parts in lost):
        return None
    same = all(parts[: len(root) - 1] == root[:-1] for parts in lost)
    return Layout("/".join((*root[:-1], ANY) if same else (ANY,) * len(root)))


def _folders(images: Mapping[Parts, int]) -> str:
    """Name the folders in which images lie, not all of them."""
    named = sorted({"/".join(parts) or "." for parts in images})
    return ", ".join(f"{folder}/" for folder in named[:NAMED]) + (", ..." if len(named) > NAMED else "")
