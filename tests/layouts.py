"""Layouts that are read from the paths of a source that exists nowhere."""

from rootstock.config import params
from rootstock.ingest import layout_choice
from rootstock.ingest.layout import LabelledFiles
from rootstock.ingest.layout_choice import Known


def images(*folders: str, each: int = 4) -> list[str]:
    """Return paths of some images in each folder."""
    return [f"{folder}/{number}.jpg" for folder in folders for number in range(each)]


def read(*paths: str, known: Known | None = None, **given) -> layout_choice.LabelledSource:
    source = params.Source(path="photos", domain="garden", **given)
    return layout_choice.read_paths(dict.fromkeys(paths, "stamp"), source, known or Known())


def kept(*paths: str, **given) -> Known:
    return Known(read(*paths, **given).layout)


def arrange(*paths: str, **given) -> LabelledFiles:
    return read(*paths, **given).files


def labels(*paths: str, **given) -> set[str]:
    return {item.label for item in arrange(*paths, **given).items if not item.problem}


def splits(*paths: str, **given) -> dict[str, tuple[str, ...]]:
    """Return the allowed splits of the images in each top-level folder."""
    return {item.path.split("/")[0]: item.splits for item in arrange(*paths, **given).items if not item.problem}
