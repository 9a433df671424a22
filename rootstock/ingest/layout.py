"""Derive labels and splits from file paths by applying a layout.

Which folders of a source are classes is detected once (layout_detection.py) or set by the user, and then kept.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from rootstock.config.params import SPLITS as SPLITS
from rootstock.images.inspection import MAX_FILE_BYTES, Reason
from rootstock.images.pixels import format_by_name
from rootstock.ingest.file_names import is_image_name, may_be_image
from rootstock.ingest.folder_names import is_unlabelled
from rootstock.ingest.junk import is_junk_name
from rootstock.ingest.labels import clean

Loader = Callable[[], bytes]  # returns the bytes of one file
Parts = tuple[str, ...]  # the folders above a file, from the top
CLASS_FOLDERS, SPLIT_FOLDERS = "class_folders", "split_folders"
ANY = "*"  # in a layout, any one folder
MAX_LISTED = 3  # files that a note lists


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a source.

    `splits` are those it may be assigned to: one if the source defines it, several if the split is drawn at random.
    `stamp` changes when the file may have changed; `problem` is the reason why it cannot be ingested; `group` names the
    images that belong together, "" if it is in none.
    """

    path: str
    label: str
    domain: str
    splits: tuple[str, ...]
    stamp: str
    problem: Reason | None = None
    group: str = ""

    @property
    def size(self) -> int | None:
        """Size in bytes, from the start of the stamp; None if the store does not report it."""
        size = self.stamp.partition(":")[0]
        return int(size) if size.isdecimal() else None


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

    items: list[Item]
    notes: list[str]
    empty: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()


def parts_of(folder: str) -> Parts:
    """Split the path of a folder into its parts; `.` is the source itself."""
    return tuple(part for part in folder.split("/") if part not in ("", "."))


def mark_too_large(items: list[Item]) -> list[Item]:
    """Mark files above the size limit as rejected, so that they are never read into memory."""
    return [
        item if item.problem or (item.size or 0) <= MAX_FILE_BYTES else replace(item, problem=Reason.TOO_LARGE)
        for item in items
    ]


@dataclass(frozen=True)
class Listing:
    """The paths of a source without junk files: files by folder, and empty folders.

    Paths have forward slashes; an empty folder is a path with a trailing slash.
    """

    files: dict[str, list[str]]  # folder -> paths of files in it
    empty: list[str]

    @classmethod
    def of(cls, paths: Iterable[str]) -> "Listing":
        """Group paths by folder, leaving out junk files."""
        files: dict[str, list[str]] = {}
        bare: set[str] = set()
        for path in paths:
            folder, _, name = path.rpartition("/")
            if name == "" or is_junk_name(name):
                bare.add(folder)
            else:
                files.setdefault(folder, []).append(path)
        bare |= {within for folder in [*files, *bare] if (within := _without_junk(folder)) != folder}
        files = {folder: files[folder] for folder in files if _without_junk(folder) == folder}
        above = {"/".join(parts[:n]) for parts in (folder.split("/") for folder in files) for n in range(len(parts))}
        empty = {folder for folder in bare if _without_junk(folder) == folder} - files.keys() - above
        return cls(files, sorted(empty))

    def images(self) -> Counter[Parts]:
        """Count the images in each folder; layout detection ignores other files such as READMEs and annotations.

        If no file has an image extension, files without any extension count.
        """
        for test in (format_by_name, is_image_name):
            counts = {folder: sum(map(bool, map(test, paths))) for folder, paths in self.files.items()}
            if any(counts.values()):
                break
        return Counter({parts_of(folder): count for folder, count in counts.items() if count})


def _without_junk(folder: str) -> str:
    """Cut a folder's path before its first junk folder."""
    parts = folder.split("/")
    return "/".join(takewhile(lambda part: not is_junk_name(part), parts))


def label_files(listing: Listing, stamps: dict[str, str], domain: str, layout: Layout) -> LabelledFiles:
    """Derive labels and splits from the paths of a source.

    Args:
        listing: its paths.
        stamps: the stamp of each file.
        domain: the domain of the source.
        layout: which folders are classes.
    """
    labels = {folder: _label(parts_of(folder), layout) for folder in listing.files}
    non_image = _non_image_folders(listing, labels)
    labels = {
        folder: ("", split) if label in non_image else (label, split) for folder, (label, split) in labels.items()
    }
    given = {split for label, split in labels.values() if label and split}
    allowed = resolve_splits(given) | {"": SPLITS}
    items, misfits = [], []
    for folder, paths in listing.files.items():
        label, split = labels[folder]
        splits = allowed[split or ""] if label else SPLITS
        for path in paths:
            problem = (None if label else Reason.NO_LABEL) if is_image_name(path) else Reason.NOT_AN_IMAGE
            items.append(Item(path, label, domain, splits, stamps[path], problem))
            if split is None and format_by_name(path):  # a file without an extension may be an annotation
                misfits.append(path)
    items.sort(key=lambda item: item.path)
    empty = {label for folder in listing.empty for label, _ in [_label(parts_of(folder), layout)] if label}
    notes = [*split_notes(given, "folder"), *_other_notes(items, non_image)]
    full = {label for label, _ in labels.values()}
    return LabelledFiles(items, notes, tuple(sorted(empty - full)), tuple(sorted(misfits)))


def _label(parts: Parts, layout: Layout) -> tuple[str, str | None]:
    """Return label and split of a folder's files: label "" outside class folders, split None outside the layout.

    The split is also None for files directly in a folder matched by `*`, which should only contain class folders.
    """
    root, split = layout.root_of(parts) or ((), None)
    if split is not None and len(parts) > len(root):
        return clean(parts[len(root)]), split
    if not parts or any(map(is_unlabelled, parts)):
        return "", ""
    return "", None if root[-1:] == (ANY,) else split


def _non_image_folders(listing: Listing, labels: dict[str, tuple[str, str | None]]) -> set[str]:
    """Return the class folders without any possible image; they are not classes."""
    pictures = {label for folder, (label, _) in labels.items() if any(map(may_be_image, listing.files[folder]))}
    return {label for label, _ in labels.values() if label} - pictures


def _other_notes(items: list[Item], non_image: set[str]) -> list[str]:
    """Note which images have no label and which folders are not classes, since they are not used."""
    notes = []
    if unlabelled := [item.path for item in items if item.problem is Reason.NO_LABEL and format_by_name(item.path)]:
        named = ", ".join(unlabelled[:MAX_LISTED]) + (", ..." if len(unlabelled) > MAX_LISTED else "")
        notes.append(f"{len(unlabelled):,} images are in no class folder ({named})")
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
