"""Choose the layout of a source: set by the user, else recorded with the dataset, else detected now."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from posixpath import commonpath
from typing import Any

from rootstock.config import params
from rootstock.ingest import layout_detection
from rootstock.ingest.ambiguity import AmbiguousLayoutError
from rootstock.ingest.folder_names import masks_among, split_of
from rootstock.ingest.folder_tree import NEGLIGIBLE_SHARE, tree
from rootstock.ingest.items import Stamps
from rootstock.ingest.labels import clean, lookalike_key
from rootstock.ingest.layout import (
    ANY,
    CLASS_FOLDERS,
    MAX_LISTED,
    SPLIT_FOLDERS,
    LabelledFiles,
    Layout,
    Listing,
    Parts,
    label_files,
    parts_of,
)
from rootstock.system.errors import SourceError

log = logging.getLogger(__name__)
MIN_MISFITS = 5  # this many misfits, if also more than a negligible share of all images, stop the run
MAX_CLASSES_LISTED = 12
# The names of split folders that were recognised before layouts were recorded.
LEGACY_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What the dataset records of a source: its layout, or, in older datasets, its labels by path."""

    layout: Mapping[str, Any] | None = None
    labels: Callable[[], dict[str, str]] | None = None


@dataclass(frozen=True)
class LabelledSource:
    """The labelled files of a source, and the layout they were read by, as recorded in the summary."""

    files: LabelledFiles
    layout: dict[str, Any]


def read_paths(
    stamps: Mapping[str, str], spec: params.Source, known: Known, *, trusted: bool = False
) -> LabelledSource:
    """Derive labels and splits from the paths of a folder or an archive.

    Args:
        stamps: stamps of its files, by path; a path with a trailing slash is an empty folder.
        spec: the source, with the layout parameters.
        known: what the dataset records of it.
        trusted: Rootstock wrote the folders itself, so all of them are classes, whatever their names.

    Raises:
        SourceError: the layout is ambiguous, or many images are outside its class folders.
    """
    listing = Listing.of(stamps if isinstance(stamps, Stamps) else Stamps.of(stamps.items()))
    images = listing.images()
    given = spec.layout_given() or ({"layout": spec.layout} if trusted else {})
    layout = _choose(listing, images, spec, known, trusted=trusted)
    files = label_files(listing, spec.domain, layout)
    misfits, total = len(files.misfits), sum(images.values())
    if not given and files.labels() and misfits >= MIN_MISFITS and misfits > NEGLIGIBLE_SHARE * total:
        raise _misfits_error(files, layout, total, spec)
    return LabelledSource(files, to_json(layout, files, spec.layout_given()))


def to_json(layout: Layout, files: LabelledFiles, given: dict[str, Any]) -> dict[str, Any]:
    """Return what the summary records: the layout, the classes found, and the layout parameters if set."""
    return (
        layout.to_json() | {"classes": sorted(files.labels() | set(files.empty))} | ({"given": given} if given else {})
    )


def describe(layout: Mapping[str, Any], title: str) -> str:
    """Describe a source's layout and classes in one line, for the log."""
    classes = layout["classes"]
    named = ", ".join(classes[:MAX_CLASSES_LISTED]) + (", ..." if len(classes) > MAX_CLASSES_LISTED else "")
    how = _from_json(layout).describe() if layout["layout"] in (CLASS_FOLDERS, SPLIT_FOLDERS) else "a table"
    return f"{title}: {how}; {len(classes):,} {'class' if len(classes) == 1 else 'classes'}: {named or 'none'}"


def _from_json(kept: Mapping[str, Any]) -> Layout:
    return Layout(kept.get("classes_at", ""), kept.get("splits", {}))


def _choose(
    listing: Listing,
    images: Mapping[Parts, int],
    spec: params.Source,
    known: Known,
    *,
    trusted: bool,
) -> Layout:
    given, kept = spec.layout_given(), known.layout
    if given:
        return _layout_from_params(images, spec)
    if kept and kept["layout"] in (CLASS_FOLDERS, SPLIT_FOLDERS) and not kept.get("given"):
        layout = _from_json(kept)
        if not images or any(layout.root_of(parts) for parts in images):
            if not trusted:
                layout_detection.check_new_classes(images, layout, kept["classes"], spec.path)
            return layout
        log.warning(
            "%s: no image matches the recorded layout any more (%s); detecting the layout again",
            spec.path,
            layout.describe(),
        )
    if trusted:
        return _legacy_layout(images)
    if known.labels is None:
        return layout_detection.detect(images, spec.path)
    return _layout_matching_labels(listing, images, spec, known.labels())


def _layout_from_params(images: Mapping[Parts, int], spec: params.Source) -> Layout:
    """Return the layout set in params.yaml."""
    within = parts_of(spec.classes_at or "")
    if spec.splits:
        layout = Layout(splits={"/".join((*within, *parts_of(at))): split for at, split in sorted(spec.splits.items())})
    elif spec.layout == SPLIT_FOLDERS:
        layout = layout_detection.split_folders(images, within)
        if not layout.splits:
            raise SourceError(
                f"ingest.sources: {spec.path}: layout is split_folders, but no folder is named like a split. "
                "List them in ingest.sources[].splits, e.g. {training_set: train, test_set: test}."
            )
    elif spec.classes_at is not None:
        layout = Layout("/".join(within))
    else:
        shared, _ = layout_detection.below_shared(tree(images))
        layout = Layout("/".join(shared))
    if images and not any((found := layout.root_of(parts)) and len(parts) > len(found[0]) for parts in images):
        raise SourceError(
            f"ingest.sources: {spec.path}: no image is in a class folder of the layout in params.yaml "
            f"({layout.describe()}); images are in {_folders(images)}."
        )
    return layout


def _layout_matching_labels(
    listing: Listing, images: Mapping[Parts, int], spec: params.Source, labels: dict[str, str]
) -> Layout:
    """Find the layout of a dataset that did not record it: one that reproduces its labels."""

    def agrees(layout: Layout) -> bool:
        items = label_files(listing, spec.domain, layout).items
        return all(item.label == clean(labels[item.path]) for item in items if item.path in labels)

    try:
        detected, doubt = layout_detection.detect(images, spec.path), None
        if agrees(detected):
            return detected
    except AmbiguousLayoutError as error:
        detected, doubt = None, error
    if agrees(before := _legacy_layout(images)):
        if doubt:
            log.warning("%s Continuing with %s, as in the existing dataset.", doubt, before.describe())
        return before
    if doubt:
        raise doubt
    assert detected is not None
    return detected


def _legacy_layout(images: Mapping[Parts, int]) -> Layout:
    """Detect a layout as older versions did: common parent folders removed, then train, val and test."""
    paths = list(images)
    shared = 0
    while paths and all(len(parts) >= shared + 2 and parts[shared] == paths[0][shared] for parts in paths):
        if paths[0][shared].lower() in LEGACY_SPLIT_NAMES:
            break
        shared += 1
    below = [parts[shared:] for parts in paths]
    named = {parts[0]: LEGACY_SPLIT_NAMES.get(parts[0].lower(), "") for parts in below if parts}
    given = {named[parts[0]] for parts in below if len(parts) > 1} - {""}
    at = paths[0][:shared] if paths else ()
    if "train" not in given or set(named.values()) == {"train", ""}:
        return Layout("/".join(at))
    return Layout(splits={"/".join((*at, name)): split for name, split in named.items() if split})


def _misfits_error(files: LabelledFiles, layout: Layout, images: int, spec: params.Source) -> SourceError:
    misfits = files.misfits
    folders = sorted({parts_of(path.rpartition("/")[0]) for path in misfits})
    taken_in = _with_misfits(layout, folders, set(map(lookalike_key, files.labels())))
    ways = [f"{taken_in.as_parameter()}, to include them"] if taken_in else []
    return SourceError(
        f"ingest.sources: {spec.path}: {len(misfits):,} of {images:,} images are outside its {layout.describe()}: in "
        f"{_folders(dict.fromkeys(folders, 1))} (e.g. {misfits[0]}). To decide, set ingest.sources[].layout, "
        f"classes_at or splits: {'; '.join([*ways, f'{layout.as_parameter()}, to exclude them'])}."
    )


def _with_misfits(layout: Layout, misfits: list[Parts], classes: set[str]) -> Layout | None:
    """Return a layout that also includes folders outside the given one: siblings of its roots with class folders.

    Args:
        layout: the current layout.
        misfits: image folders outside of it.
        classes: lookalike keys of its labels.
    """
    roots = list(layout.roots)
    if masks_among({part for parts in misfits for part in parts} - {part for root in roots for part in root}):
        return None
    if layout.splits:
        above = parts_of(commonpath(["/".join(root[:-1]) for root in roots]))
        n = len(above)
        if not all(
            parts[:n] == above and len(parts) > n + 1 and lookalike_key(parts[n + 1]) in classes for parts in misfits
        ):
            return None
        new = {"/".join(parts[: n + 1]): split_of(parts[n]) or "train" for parts in misfits}
        return Layout(splits=layout.splits | new)
    [root] = roots
    if any(len(parts) <= len(root) for parts in misfits):
        return None
    same = all(parts[: len(root) - 1] == root[:-1] for parts in misfits)
    return Layout("/".join((*root[:-1], ANY) if same else (ANY,) * len(root)))


def _folders(images: Mapping[Parts, int]) -> str:
    """List folders with images, shortened if there are many."""
    named = sorted({"/".join(parts) or "." for parts in images})
    return ", ".join(f"{folder}/" for folder in named[:MAX_LISTED]) + (", ..." if len(named) > MAX_LISTED else "")
