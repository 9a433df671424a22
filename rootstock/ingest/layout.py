"""Derive labels and splits from file paths by applying a layout.

Which folders of a source are classes is detected once (layout_detection.py) or set by the user, and then kept.
"""

import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rootstock.config.params import SPLITS as SPLITS
from rootstock.images.inspection import MAX_FILE_BYTES, Reason
from rootstock.images.pixels import format_by_name
from rootstock.ingest.file_names import is_image_name, may_be_image
from rootstock.ingest.folder_names import is_unlabelled
from rootstock.ingest.items import Item as Item, Items, Kind, Stamps, size_in
from rootstock.ingest.junk import is_junk_name
from rootstock.ingest.labels import clean

Loader = Callable[[], bytes]  # returns the bytes of one file
Parts = tuple[str, ...]  # the folders above a file, from the top
CLASS_FOLDERS, SPLIT_FOLDERS = "class_folders", "split_folders"
ANY = "*"  # in a layout, any one folder
MAX_LISTED = 3  # files that a note lists
JUNK = -1  # the folder of files that are left out


@dataclass(frozen=True)
class Layout:
    """Which folders are classes: the subfolders of `classes_at`, or of each folder in `splits`.

    Folders are paths within the source, "" for the source itself; `*` matches any one folder.
    """

    classes_at: str = ""
    splits: dict[str, str] = field(default_factory=dict)

    @property
    def roots(self) -> dict[Parts, str]:
        """Map the parents of class folders to their split, or "" if it is drawn at random."""
        folders = self.splits or {self.classes_at: ""}
        return {parts_of(folder): split for folder, split in folders.items()}

    def root_of(self, parts: Parts) -> tuple[Parts, str] | None:
        """Return the deepest root that contains a folder, and its split; None if there is none."""
        found = [
            (root, split)
            for root, split in self.roots.items()
            if len(parts) >= len(root) and all(name in (ANY, part) for name, part in zip(root, parts, strict=False))
        ]
        return max(found, key=lambda entry: len(entry[0])) if found else None

    def below(self, *parts: str) -> "Layout":
        """Return the layout whose class folders lie below `parts` in each root of this one."""
        if self.splits:
            return Layout(splits={_joined(folder, *parts): split for folder, split in self.splits.items()})
        return Layout(_joined(self.classes_at, *parts))

    def to_json(self) -> dict[str, Any]:
        """Return the layout as recorded in the summary, under the names of the parameters."""
        if self.splits:
            return {"layout": SPLIT_FOLDERS, "splits": dict(sorted(self.splits.items()))}
        return {"layout": CLASS_FOLDERS, "classes_at": self.classes_at}

    def describe(self) -> str:
        """Describe the layout in words."""
        if self.splits:
            named = ", ".join(f"{folder or '.'}/ is {split}" for folder, split in self.splits.items())
            return f"split folders ({named})"
        return f"class folders under {self.classes_at}/" if self.classes_at else "class folders"

    def as_parameter(self) -> str:
        """Return the parameter that sets this layout in params.yaml."""
        if self.splits:
            named = ", ".join(f"{_yaml_key(folder or '.')}: {split}" for folder, split in self.splits.items())
            return f"splits: {{{named}}}"
        return f"classes_at: {json.dumps(self.classes_at or '.', ensure_ascii=False)}"


def _joined(*folders: str) -> str:
    return "/".join(filter(None, folders))


def _yaml_key(folder: str) -> str:
    """Write a folder as a YAML key, quoted unless it is a plain word."""
    plain = re.fullmatch(r"[^\W\d_]([\w./ -]*\w)?", folder) and folder.lower() not in ("null", "true", "false")
    return folder if plain else json.dumps(folder, ensure_ascii=False)


@dataclass(frozen=True)
class LabelledFiles:
    """The labelled items of a listing by path, notes for the summary, and empty class folders.

    `misfits` are images outside the class folders of the layout.
    """

    items: Items
    notes: list[str]
    empty: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()

    def labels(self) -> set[str]:
        """Return the labels of the files."""
        return {kind.label for kind, _ in self.items.firsts() if kind.label}


def parts_of(folder: str) -> Parts:
    """Split the path of a folder into its parts; `.` is the source itself."""
    return tuple(part for part in folder.split("/") if part not in ("", "."))


def mark_too_large(items: Iterable[Item]) -> list[Item]:
    """Mark files above the size limit as rejected, so that they are never read into memory."""
    return [
        item if item.problem or not is_too_large(item.stamp) else item._replace(problem=Reason.TOO_LARGE)
        for item in items
    ]


def is_too_large(stamp: str) -> bool:
    """Whether a file of this stamp is above the size limit."""
    return (size_in(stamp) or 0) > MAX_FILE_BYTES


# What the name of a file tells: the extension of a supported format; that, or none at all; one that is not clearly that
# of something else. And its size.
FORMAT, IMAGE, PERHAPS, TOO_LARGE = 1, 2, 4, 8


@dataclass(frozen=True)
class Listing:
    """The files of a source without junk files, in order of their paths, with their folders; and empty folders.

    Paths have forward slashes. `folder_of` are positions in `folders`, (n,), and `looks` flags such as FORMAT, (n,).
    """

    stamps: Stamps
    folders: list[str]
    folder_of: NDArray[np.int32]
    looks: NDArray[np.uint8]
    empty: list[str]

    @classmethod
    def of(cls, stamps: Stamps) -> "Listing":
        """Look at files by path, and leave out junk; an empty folder is a path with a trailing slash."""
        codes: dict[str, int] = {}
        bare: set[str] = set()
        folder_of, looks = array("i"), array("B")
        for path, stamp in stamps.items():
            folder, _, name = path.rpartition("/")
            if name == "" or is_junk_name(name):
                bare.add(folder)
                folder_of.append(JUNK)
                looks.append(0)
            else:
                folder_of.append(codes.setdefault(folder, len(codes)))
                looks.append(_look(name, stamp))
        without = {folder: _without_junk(folder) for folder in [*codes, *bare]}
        bare |= {within for folder, within in without.items() if within != folder}
        kept = [folder for folder in codes if without[folder] == folder]
        above = {"/".join(parts[:n]) for parts in (folder.split("/") for folder in kept) for n in range(len(parts))}
        empty = {folder for folder in bare if _without_junk(folder) == folder} - set(kept) - above
        number = {folder: at for at, folder in enumerate(kept)}
        renumbered = np.array([*(number.get(folder, JUNK) for folder in codes), JUNK], np.int32)
        of, seen = renumbered[np.array(folder_of, np.int32)], np.array(looks, np.uint8)
        if (there := of != JUNK).all():
            return cls(stamps, kept, of, seen, sorted(empty))
        return cls(stamps.chosen(there), kept, of[there], seen[there], sorted(empty))

    def counts(self, look: int) -> NDArray[np.int64]:
        """Return the number of files of a look in each folder."""
        return np.bincount(self.folder_of[self.looks & look > 0], minlength=len(self.folders))

    def images(self) -> Counter[Parts]:
        """Count the images in each folder; layout detection ignores other files such as READMEs and annotations.

        If no file has an image extension, files without any extension count.
        """
        counts = self.counts(FORMAT)
        if not counts.any():
            counts = self.counts(IMAGE)
        found = zip(self.folders, counts.tolist(), strict=True)
        return Counter({parts_of(folder): count for folder, count in found if count})


def _look(name: str, stamp: str) -> int:
    """Return what the name of a file tells, and its size."""
    found = TOO_LARGE if is_too_large(stamp) else 0
    if format_by_name(name):
        return found | FORMAT | IMAGE | PERHAPS
    return found | (IMAGE if is_image_name(name) else 0) | (PERHAPS if may_be_image(name) else 0)


def _without_junk(folder: str) -> str:
    """Cut a folder's path before its first junk folder."""
    parts = folder.split("/")
    return "/".join(takewhile(lambda part: not is_junk_name(part), parts))


def label_files(listing: Listing, domain: str, layout: Layout) -> LabelledFiles:
    """Derive labels and splits from the paths of a source.

    Args:
        listing: its files.
        domain: the domain of the source.
        layout: which folders are classes.
    """
    found = [_label(parts_of(folder), layout) for folder in listing.folders]
    non_image = _non_image_folders(listing, found)
    found = [("", split) if label in non_image else (label, split) for label, split in found]
    given = {split for label, split in found if label and split}
    allowed = resolve_splits(given) | {"": SPLITS}
    kinds = [
        Kind(label, domain, allowed[split or ""] if label else SPLITS, problem)
        for label, split in found
        for problem in ((None, Reason.TOO_LARGE) if label else (Reason.NO_LABEL,) * 2) + (Reason.NOT_AN_IMAGE,)
    ]
    problem = np.where(listing.looks & IMAGE, (listing.looks & TOO_LARGE) > 0, 2).astype(np.int32)
    items = Items(listing.stamps, len(kinds) // max(1, len(found)) * listing.folder_of + problem, kinds)
    is_image = listing.looks & FORMAT > 0  # a file without an extension may be an annotation
    # Images without classes may be a whole split (test/0.jpg), but not beside its classes.
    outside = [split is None or (not label and split in given) for label, split in found]
    is_outside = np.array(outside, bool)[listing.folder_of] & is_image
    misfits = tuple(item.path for item in items.chosen(is_outside))
    unlabelled = np.array([not label for label, _ in found], bool)[listing.folder_of] & is_image
    empty = {label for folder in listing.empty for label, _ in [_label(parts_of(folder), layout)] if label}
    notes = [*split_notes(given, "folder"), *_other_notes(items, unlabelled, non_image)]
    full = {label for label, _ in found}
    return LabelledFiles(items, notes, tuple(sorted(empty - full)), misfits)


def _label(parts: Parts, layout: Layout) -> tuple[str, str | None]:
    """Return label and split of a folder's files: label "" outside class folders, split None outside the layout.

    Without a label they may be in a folder that says so (`unlabelled/`), with split "", or directly in one of a split.
    """
    root, split = layout.root_of(parts) or ((), None)
    if split is not None and len(parts) > len(root):
        return clean(parts[len(root)]), split
    if any(map(is_unlabelled, parts)):
        return "", ""
    return "", split or None


def _non_image_folders(listing: Listing, found: list[tuple[str, str | None]]) -> set[str]:
    """Return the class folders without any possible image; they are not classes."""
    counts = listing.counts(PERHAPS)
    pictures = {label for (label, _), count in zip(found, counts, strict=True) if count}
    return {label for label, _ in found if label} - pictures


def _other_notes(items: Items, unlabelled: NDArray[np.bool_], non_image: set[str]) -> list[str]:
    """Note which images have no label and which folders are not classes, since they are not used."""
    notes = []
    if count := int(np.count_nonzero(unlabelled)):
        firsts = [item.path for item in islice(items.chosen(unlabelled), MAX_LISTED)]
        named = ", ".join(firsts) + (", ..." if count > MAX_LISTED else "")
        notes.append(f"{count:,} images are in no class folder ({named})")
    if non_image:
        notes.append(f"not classes, since they contain no images: {', '.join(sorted(non_image))}")
    return notes


def resolve_splits(given: set[str]) -> dict[str, tuple[str, ...]]:
    """Map each split that a source defines to the splits its images may be assigned to.

    Without a test split, val becomes the test split, so that results are on what the author held out; missing splits
    are then drawn from train.
    """
    allowed: dict[str, tuple[str, ...]] = {split: (split,) for split in SPLITS}
    if given == {"train", "val"}:
        allowed |= {"train": ("train", "val"), "val": ("test",)}
    elif given == {"train", "test"}:
        allowed["train"] = ("train", "val")
    elif given == {"train"}:
        allowed["train"] = SPLITS
    return allowed


def split_notes(given: set[str], what: str) -> list[str]:
    """Describe the effect of `resolve_splits` for the summary; `what` is "folder" or "row"."""
    if "train" not in given:
        return []
    if given == {"train", "val"}:
        return [f"no test {what}: val becomes the test split, and validation is drawn from train"]
    if given == {"train", "test"}:
        return [f"no val {what}: validation is drawn from train"]
    if given == {"train"}:
        return [f"neither val nor test {what}: both are drawn from train"]
    return [f"train, val and test as defined by the {what}s"]
