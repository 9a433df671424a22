"""What a source lists, and what is read of its files."""

from pathlib import Path

from rootstock.images.inspection import Reason, Rejected
from tests.images import encoded, picture, put

CLASSES = {"ants": 3, "bees": 2}  # the number of images of each class of the fixture `five_photos`
PATHS = ["ants/00.png", "ants/01.png", "ants/02.png", "bees/00.png", "bees/01.png"]


def drawn(number: int) -> bytes:
    """Return the PNG file of a picture; those of PATHS are drawn from 0, 1, 2, 3 and 4."""
    return encoded(picture(number))


def manifest(path: Path, text: str) -> Path:
    return put(path, text.encode())


def labels(source) -> dict[str, str]:
    return {item.path: item.label for item in source.items if not item.problem}


def splits(source) -> dict[str, tuple[str, ...]]:
    return {item.path: item.splits for item in source.items if not item.problem}


def problems(source) -> dict[str, Reason]:
    return {item.path: item.problem for item in source.items if item.problem}


def contents(source, wanted=None) -> dict[str, bytes | Reason]:
    """Read the accepted items: bytes, or the reason why a file is rejected."""
    found = {}
    for item, load in source.read(wanted or {item.path for item in source.items if not item.problem}):
        try:
            found[item.path] = load()
        except Rejected as rejected:
            found[item.path] = rejected.reason
    return found
