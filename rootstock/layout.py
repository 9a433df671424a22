"""Where a file lies says what it is: paths into labels and splits."""

import posixpath
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from rootstock.images import format_by_name
from rootstock.intake import MAX_FILE_BYTES, Reason

Loader = Callable[[], bytes]  # gives the bytes of one file
SPLITS = ("train", "val", "test")
FOLDER_OF_SPLIT = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# What systems and archivers leave behind; nobody means these as images.
LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")


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


def without_huge(items: list[Item], size_of: Callable[[str], int | None]) -> list[Item]:
    """Mark what is too large to be an image, so that it is never read into memory."""
    return [
        item if item.problem or (size_of(item.path) or 0) <= MAX_FILE_BYTES else replace(item, problem=Reason.TOO_LARGE)
        for item in items
    ]


def is_litter(path: str) -> bool:
    """Whether a path is a hidden file, or lies in a hidden folder, or is what a system leaves behind."""
    return any((part.startswith(".") and part not in (".", "..")) or part in LITTER for part in path.split("/"))


def printable(path: str) -> str:
    """Spell a path so that any file can hold it: bytes that are not UTF-8 become their hexadecimal escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_unsafe(path: str) -> bool:
    """Whether an archive member's name points outside the archive."""
    pure = PurePosixPath(path.replace("\\", "/"))
    return pure.is_absolute() or ".." in pure.parts or (pure.parts[:1] != () and pure.parts[0].endswith(":"))


def arrange(files: dict[str, str], domain: str) -> tuple[list[Item], list[str]]:
    """Read labels and splits off the paths of a source.

    The layouts are `<class>/<file>` and `<split>/<class>/<file>`, below any folders that all files share; deeper
    folders belong to their class.

    Args:
        files: path (relative, with forward slashes) and stamp of each.
        domain: of the source.

    Returns:
        The items, sorted by path, and notes for the summary on what was made of the layout.
    """
    paths = sorted(path for path in files if not is_litter(path))
    # Only images say how a source is laid out: there may be a README, or a folder of annotations beside train/.
    images = [path.split("/") for path in paths if format_by_name(path)]
    images = images or [path.split("/") for path in paths if is_image_name(path)]
    shared = _shared_depth(images)
    by_split, given = _split_folders([parts[shared:] for parts in images])
    items = []
    for path in paths:
        parts = path.split("/")[shared:]
        splits: tuple[str, ...] = SPLITS
        if by_split and parts:
            splits, parts = by_split.get(parts[0], SPLITS), parts[1:] if parts[0] in by_split else []
        label = parts[0] if len(parts) > 1 else ""
        problem = None if is_image_name(path) else Reason.NOT_AN_IMAGE
        items.append(Item(path, label, domain, splits, files[path], problem or (None if label else Reason.NO_LABEL)))
    return items, note_on(given, "folder")


def is_image_name(path: str) -> bool:
    """Whether a name has the extension of a format that is taken in, or none at all."""
    return posixpath.splitext(path)[1] in ("", ".") or format_by_name(path) is not None


def _shared_depth(paths: list[list[str]]) -> int:
    """Count the leading folders that all images share, leaving at least a class and a file below."""
    depth = 0
    while paths and all(len(parts) >= depth + 3 and parts[depth] == paths[0][depth] for parts in paths):
        if paths[0][depth].lower() in FOLDER_OF_SPLIT:
            break
        depth += 1
    return depth


def _split_folders(images: list[list[str]]) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    """Say which splits the images of each top folder may go to, and which splits there are; nothing for classes.

    A class may well be called train, but not beside one called test: then other folders have no meaning.
    """
    named = {parts[0]: FOLDER_OF_SPLIT.get(parts[0].lower(), "") for parts in images if len(parts) > 1}
    given = {named[parts[0]] for parts in images if len(parts) > 2} - {""}  # with classes below
    if "train" not in given or set(named.values()) == {"train", ""}:
        return {}, set()
    meaning = meaning_of(given)
    return {folder: meaning[split] for folder, split in named.items() if split}, given


def meaning_of(given: set[str]) -> dict[str, tuple[str, ...]]:
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
    """Put `meaning_of` into words for the summary; `what` is a folder or a row."""
    if "train" not in given:
        return []
    if given == {"train", "val"}:
        return [f"no test {what}: val is the test split, and validation is cut from train"]
    if given == {"train", "test"}:
        return [f"no val {what}: validation is cut from train"]
    if given == {"train"}:
        return [f"neither val nor test {what}: both are cut from train"]
    return [f"train, val and test as the {what}s say"]
