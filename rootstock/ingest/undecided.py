"""What is said where a layout could mean two things: what is there, and the values of parameters that decide.

Each value that is named can be put into params.yaml as it stands.
"""

from collections.abc import Collection, Iterable

from rootstock.ingest.folder_names import is_container, split_of
from rootstock.ingest.folder_tree import Folder
from rootstock.ingest.layout import ANY, SPLITS, Layout, Parts
from rootstock.system.errors import SourceError

SHOWN = 5  # names that an error gives


class Undecided(SourceError):  # noqa: N818 - a person decides
    """A layout that could mean two things; `seen` says what is there."""

    def __init__(self, where: str, seen: str, *ways: str) -> None:
        how = f"Say which is meant by ingest.sources[].layout, classes_at or splits: {'; '.join(ways)}"
        super().__init__(f"ingest.sources: {where}: {seen}. {how}.")
        self.seen = seen


def all_classes(layout: Layout) -> str:
    """Say how folders become classes, whatever their names."""
    return f"{layout.as_parameter()}, if all of these are classes"


def which_level(layout: Layout, step: Parts, tops: Collection[str], below: Collection[str]) -> list[str]:
    """Say how either of two levels of folders becomes the classes, or the upper one the splits.

    Args:
        layout: by which the upper ones are the classes.
        step: the folders between the two levels.
        tops: names of the upper ones.
        below: names of the lower ones.
    """
    ways = [
        f"{layout.as_parameter()}, if {names(tops)} are the classes",
        f"{layout.below(ANY, *step).as_parameter()}, if {names(below)} are",
    ]
    if layout.splits or ANY in layout.classes_at:
        return ways
    first, *_, last = sorted(tops)
    ways.append(f"{layout.below(first, *step).as_parameter()}, to read {first}/ alone")
    if len(tops) <= SHOWN:
        roots = {name: layout.below(name, *step).classes_at for name in sorted(tops)}
        splits = Layout(splits={at: "test" if name == last else "train" for name, at in roots.items()})
        ways.append(f"{splits.as_parameter()}, if these are splits, each {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    return ways


def as_splits(base: Folder, found: Collection[str], layout: Layout) -> list[str]:
    """Say how folders that are named as splits, and hold folders, are read as that."""
    roots = {layout.below(name).classes_at: split_of(name) for name in found if base.folders[name].folders}
    if layout.splits or "train" not in roots.values():
        return []
    return [f"{Layout(splits=roots).as_parameter()}, if these are splits"]


def splits_and_others(base: Folder, roots: dict[str, str], others: list[str], layout: Layout) -> list[str]:
    """Say how splits and what lies beside them can both be read, or the splits alone."""
    if not roots:
        return []
    ways = []
    if "train" in roots.values():
        ways.append(f"{Layout(splits=roots).as_parameter()}, to leave {names(others)} out")
        more = {layout.below(name).classes_at: "train" for name in others if base.folders[name].folders}
    else:
        more = {layout.classes_at: "train"}
    if more:
        ways.append(f"{Layout(splits=more | roots).as_parameter()}, to train on {names(others)}")
    return ways


def images_alone(base: Folder, others: set[str], layout: Layout) -> list[str]:
    """Say how masks are left out, where the images beside them are divided into classes: by reading these alone."""
    there = sorted(others & base.folders.keys())
    images = [name for name in there if is_container(name) and base.folders[name].is_divided]
    return [f"{layout.below(name).as_parameter()}, to read {name}/ alone" for name in images[:1]]


def names(folders: Iterable[str], mark: str = "/") -> str:
    """Name some folders, not all of many."""
    listed = sorted(folders)
    return ", ".join(f"{name}{mark}" for name in listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")


def are(folders: Collection[str]) -> str:
    """Return the verb that goes with so many folders."""
    return "is" if len(folders) == 1 else "are"


def classes(folders: Collection[str]) -> str:
    """Return the noun that goes with so many folders."""
    return "a class" if len(folders) == 1 else "classes"
