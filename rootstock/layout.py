"""Where a file lies says what it is: paths into labels and splits."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from rootstock.images import FORMAT_OF, Reason

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


def is_litter(path: str) -> bool:
    """Whether a path is a hidden file, or lies in a hidden folder, or is what a system leaves behind."""
    return any(part.startswith(".") or part in LITTER for part in PurePosixPath(path).parts)


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
    shared = _shared_depth([path.split("/") for path in paths if is_image_name(path)])
    folders = {parts[shared] for path in paths if len(parts := path.split("/")) > shared + 2}
    by_split = _split_folders(folders, [path.split("/")[shared:] for path in paths])
    items = []
    for path in paths:
        parts = path.split("/")[shared:]
        splits: tuple[str, ...] = SPLITS
        if len(parts) > 1 and parts[0] in by_split:
            splits, parts = by_split[parts[0]], parts[1:]
        label = parts[0] if len(parts) > 1 else ""
        problem = None if is_image_name(path) else Reason.NOT_AN_IMAGE
        items.append(Item(path, label, domain, splits, files[path], problem or (None if label else Reason.NO_LABEL)))
    return items, _notes(by_split)


def is_image_name(path: str) -> bool:
    """Whether a name has the extension of a format that is taken in, or none at all."""
    suffix = PurePosixPath(path).suffix.lower()
    return not suffix or suffix in FORMAT_OF


def _shared_depth(paths: list[list[str]]) -> int:
    """Count the leading folders that all images share, leaving at least a class and a file below."""
    depth = 0
    while paths and all(len(parts) >= depth + 3 and parts[depth] == paths[0][depth] for parts in paths):
        if paths[0][depth].lower() in FOLDER_OF_SPLIT:
            break
        depth += 1
    return depth


def _split_folders(folders: set[str], paths: list[list[str]]) -> dict[str, tuple[str, ...]]:
    """Say which splits the files of each top folder may go to; nothing where the folders are classes."""
    named = {folder: FOLDER_OF_SPLIT.get(folder.lower()) for folder in folders}
    classes = {parts[0] for parts in paths if len(parts) == 2 and is_image_name(parts[1])}
    if "train" not in named.values() or None in named.values() or classes - folders:
        return {}
    given = set(named.values())
    # Without a test folder the figures are to be on what the author held out, so val becomes the test split.
    meaning: dict[str | None, tuple[str, ...]] = {"train": ("train",), "val": ("val",), "test": ("test",)}
    if given == {"train", "val"}:
        meaning = {"train": ("train", "val"), "val": ("test",)}
    elif given == {"train", "test"}:
        meaning["train"] = ("train", "val")
    elif given == {"train"}:
        meaning["train"] = SPLITS
    return {folder: meaning[split] for folder, split in named.items()}


def _notes(by_split: dict[str, tuple[str, ...]]) -> list[str]:
    meanings = set(by_split.values())
    if not by_split:
        return []
    if ("train", "val") in meanings and not any(FOLDER_OF_SPLIT[folder.lower()] == "test" for folder in by_split):
        return ["no test folder: val is the test split, and validation is cut from train"]
    if ("train", "val") in meanings:
        return ["no val folder: validation is cut from train"]
    if SPLITS in meanings:
        return ["neither val nor test folder: both are cut from train"]
    return ["train, val and test as the folders say"]
