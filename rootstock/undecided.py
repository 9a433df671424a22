"""What is said where a layout could mean two things: what is there, and the values of parameters that decide.

Each value that is named can be put into params.yaml as it stands.
"""

from collections.abc import Collection, Iterable

from rootstock.errors import SourceError
from rootstock.layout import ANY, SPLITS, Layout, Parts

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
