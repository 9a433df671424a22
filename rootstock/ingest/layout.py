"""Where a file lies says what it is: paths into labels and splits, by a layout.

Which folders of a source are classes is decided once (deciding.py), or by a person, and then kept; here it is applied.
"""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

from rootstock.config.params import SPLITS as SPLITS
from rootstock.images.inspection import MAX_FILE_BYTES, Reason
from rootstock.images.pixels import format_by_name
from rootstock.ingest.folder_names import is_unlabelled
from rootstock.ingest.labels import clean
from rootstock.ingest.litter import is_litter_name

Loader = Callable[[], bytes]  # gives the bytes of one file
Parts = tuple[str, ...]  # the folders in which a file lies
CLASS_FOLDERS, SPLIT_FOLDERS = "class_folders", "split_folders"
ANY = "*"  # in a layout, any one folder
NAMED = 3  # files that a note names


@dataclass(frozen=True, slots=True)
class Item:
    """One file that a source offers.

    `splits` are those it may go to: one where the source says which, several where the split is drawn.
    `stamp` changes when the file may have changed; `problem` says why it cannot be taken in at all.
    """

    path: str
    label: str
    domain: str
    splits: tuple[str, ...]
    stamp: str
    problem: Reason | None = None

    @property
    def size(self) -> int | None:
        """Read the size in bytes off the stamp, which begins with it; None where the store does not say."""
        size = self.stamp.partition(":")[0]
        return int(size) if size.isdecimal() else None


@dataclass(frozen=True)
class Layout:
    """Which folders are classes: the sub-folders of `classes_at`, or of each folder of `splits`.

    Folders are given by their paths in the source, "" for the source itself; `*` stands for any one folder.
    """

    classes_at: str = ""
    splits: dict[str, str] = field(default_factory=dict)

    @property
    def roots(self) -> dict[Parts, str]:
        """Name the folders that hold the class folders, each with its split, or "" where that is drawn."""
        folders = self.splits or {self.classes_at: ""}
        return {parts_of(folder): split for folder, split in folders.items()}

    def root_of(self, parts: Parts) -> tuple[Parts, str] | None:
        """Find the root in which a folder lies, the deepest of several, and its split; None where it lies in none."""
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
        """Return what the summary of the data set keeps, under the names of the parameters."""
        if self.splits:
            return {"layout": SPLIT_FOLDERS, "splits": dict(sorted(self.splits.items()))}
        return {"layout": CLASS_FOLDERS, "classes_at": self.classes_at}

    def say(self) -> str:
        """Say in words how folders are read."""
        if self.splits:
            named = ", ".join(f"{folder or '.'}/ is {split}" for folder, split in self.splits.items())
            return f"split folders ({named})"
        return f"class folders under {self.classes_at}/" if self.classes_at else "class folders"

    def as_parameter(self) -> str:
        """Spell out what sets it in params.yaml."""
        if self.splits:
            named = ", ".join(f"{_yaml_key(folder or '.')}: {split}" for folder, split in self.splits.items())
            return f"splits: {{{named}}}"
        return f"classes_at: {json.dumps(self.classes_at or '.', ensure_ascii=False)}"


def _joined(*folders: str) -> str:
    return "/".join(filter(None, folders))


def _yaml_key(folder: str) -> str:
    """Write a folder as a key in YAML: in quotes, unless it is plainly a word."""
    plain = re.fullmatch(r"[^\W\d_]([\w./ -]*\w)?", folder) and folder.lower() not in ("null", "true", "false")
    return folder if plain else json.dumps(folder, ensure_ascii=False)


@dataclass(frozen=True)
class Arranged:
    """What was made of a listing: its items by path, notes for the summary, class folders that hold nothing.

    `misfits` are images that lie where the layout has no class folder: what they mean it does not say.
    """

    items: list[Item]
    notes: list[str]
    empty: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()


def parts_of(folder: str) -> Parts:
    """Take the path of a folder apart; `.` is the source itself."""
    return tuple(part for part in folder.split("/") if part not in ("", "."))


def without_huge(items: list[Item], size_of: Callable[[str], int | None]) -> list[Item]:
    """Mark what is too large to be an image, so that it is never read into memory."""
    return [
        item if item.problem or (size_of(item.path) or 0) <= MAX_FILE_BYTES else replace(item, problem=Reason.TOO_LARGE)
        for item in items
    ]


def storable(path: str) -> str:
    """Spell a path so that any file can hold it: bytes that are not UTF-8 become their hexadecimal escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_unsafe(path: str) -> bool:
    """Whether an archive member's name points outside the archive."""
    pure = PurePosixPath(path.replace("\\", "/"))
    return pure.is_absolute() or ".." in pure.parts or (pure.parts[:1] != () and pure.parts[0].endswith(":"))


def is_image_name(path: str) -> bool:
    """Whether a name has the extension of a format that is taken in, or none at all."""
    return posixpath.splitext(path)[1] in ("", ".") or format_by_name(path) is not None


@dataclass(frozen=True)
class Listing:
    """The paths of a source without litter: files by folder, and folders that hold nothing.

    Paths have forward slashes; a folder that holds nothing is a path that ends in one.
    """

    files: dict[str, list[str]]  # folder -> paths of files in it
    empty: list[str]

    @classmethod
    def of(cls, paths: Iterable[str]) -> "Listing":
        """Sort paths by folder, and leave out litter."""
        files: dict[str, list[str]] = {}
        bare: set[str] = set()
        for path in paths:
            folder, _, name = path.rpartition("/")
            if name == "" or is_litter_name(name):
                bare.add(folder)
            else:
                files.setdefault(folder, []).append(path)
        bare |= {within for folder in [*files, *bare] if (within := _without_litter(folder)) != folder}
        files = {folder: files[folder] for folder in files if _without_litter(folder) == folder}
        above = {"/".join(parts[:n]) for parts in (folder.split("/") for folder in files) for n in range(len(parts))}
        empty = {folder for folder in bare if _without_litter(folder) == folder} - files.keys() - above
        return cls(files, sorted(empty))

    def images(self) -> Counter[Parts]:
        """Count the images in each folder; only they say how a source is laid out, not a README or an annotation.

        Where no file has the extension of an image, those without any count.
        """
        for test in (format_by_name, is_image_name):
            counts = {folder: sum(map(bool, map(test, paths))) for folder, paths in self.files.items()}
            if any(counts.values()):
                break
        return Counter({parts_of(folder): count for folder, count in counts.items() if count})


def _without_litter(folder: str) -> str:
    """Cut a folder's path where litter begins: a folder of nothing else holds nothing."""
    parts = folder.split("/")
    return "/".join(takewhile(lambda part: not is_litter_name(part), parts))


def arrange(listing: Listing, stamps: dict[str, str], domain: str, layout: Layout) -> Arranged:
    """Read labels and splits off the paths of a source.

    Args:
        listing: its paths.
        stamps: of each file.
        domain: of the source.
        layout: which folders are classes.
    """
    labels = {folder: _label(parts_of(folder), layout) for folder in listing.files}
    documents = _documents(listing, labels)
    labels = {
        folder: ("", split) if label in documents else (label, split) for folder, (label, split) in labels.items()
    }
    given = {split for label, split in labels.values() if label and split}
    meaning = resolve_splits(given) | {"": SPLITS}
    items, misfits = [], []
    for folder, paths in listing.files.items():
        label, split = labels[folder]
        splits = meaning[split or ""] if label else SPLITS
        for path in paths:
            problem = (None if label else Reason.NO_LABEL) if is_image_name(path) else Reason.NOT_AN_IMAGE
            items.append(Item(path, label, domain, splits, stamps[path], problem))
            if split is None and format_by_name(path):  # without an extension, it may be an annotation
                misfits.append(path)
    items.sort(key=lambda item: item.path)
    empty = {label for folder in listing.empty for label, _ in [_label(parts_of(folder), layout)] if label}
    notes = [*note_on(given, "folder"), *_notes_on_rest(items, documents)]
    full = {label for label, _ in labels.values()}
    return Arranged(items, notes, tuple(sorted(empty - full)), tuple(sorted(misfits)))


def _label(parts: Parts, layout: Layout) -> tuple[str, str | None]:
    """Say the label and the split of a folder's files; no label where it is no class folder, no split (None) where it
    lies where the layout says nothing, or is one of a kind (`*`) that should hold class folders.
    """
    root, split = layout.root_of(parts) or ((), None)
    if split is not None and len(parts) > len(root):
        return clean(parts[len(root)]), split
    if not parts or any(map(is_unlabelled, parts)):
        return "", ""
    return "", None if root[-1:] == (ANY,) else split


def _documents(listing: Listing, labels: dict[str, tuple[str, str | None]]) -> set[str]:
    """Name the class folders that hold nothing that is, or might be, a picture: they are no classes."""
    pictures = {label for folder, (label, _) in labels.items() if any(map(_might_be_a_picture, listing.files[folder]))}
    return {label for label, _ in labels.values() if label} - pictures


def _might_be_a_picture(path: str) -> bool:
    """Whether a name is not plainly that of a text, a table, a program and the like."""
    return posixpath.splitext(path)[1].lower() not in DOCUMENTS


DOCUMENTS = frozenset(
    {
        ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".htm",
        ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ods", ".odt", ".py", ".ipynb", ".m", ".r", ".sh", ".bat",
        ".log", ".cfg", ".ini", ".toml", ".npy", ".npz", ".mat", ".pkl", ".h5", ".hdf5", ".parquet", ".db",
        ".sqlite", ".zip", ".tar", ".gz", ".7z", ".tex", ".bib", ".cache", ".names", ".data", ".sql", ".js",
        ".css"
    }
)  # fmt: skip


def _notes_on_rest(items: list[Item], documents: set[str]) -> list[str]:
    """Say which images have no label and which folders are no classes: they are not trained on."""
    notes = []
    if lost := [item.path for item in items if item.problem is Reason.NO_LABEL and format_by_name(item.path)]:
        named = ", ".join(lost[:NAMED])
        notes.append(f"{len(lost)} images lie in no class folder ({named}{', ...' if len(lost) > NAMED else ''})")
    if documents:
        notes.append(f"no classes, as they hold no pictures: {', '.join(sorted(documents))}")
    return notes


def resolve_splits(given: set[str]) -> dict[str, tuple[str, ...]]:
    """Say where the images of each split that a source names may go, by which others it names.

    Without a test split the figures are to be on what the author held out, so val becomes the test split; what is
    missing then is cut from train.
    """
    meaning: dict[str, tuple[str, ...]] = {split: (split,) for split in SPLITS}
    if given == {"train", "val"}:
        meaning |= {"train": ("train", "val"), "val": ("test",)}
    elif given == {"train", "test"}:
        meaning["train"] = ("train", "val")
    elif given == {"train"}:
        meaning["train"] = SPLITS
    return meaning


def note_on(given: set[str], what: str) -> list[str]:
    """Put `resolve_splits` into words for the summary; `what` is a folder or a row."""
    if "train" not in given:
        return []
    if given == {"train", "val"}:
        return [f"no test {what}: val is the test split, and validation is cut from train"]
    if given == {"train", "test"}:
        return [f"no val {what}: validation is cut from train"]
    if given == {"train"}:
        return [f"neither val nor test {what}: both are cut from train"]
    return [f"train, val and test as the {what}s say"]
