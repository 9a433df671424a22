"""Errors for an ambiguous folder layout: what was found, and the parameters that resolve it.

Every suggested value can be pasted into params.yaml as it is.
"""

from collections.abc import Collection, Iterable

from rootstock.ingest.folder_names import COLLECTION_KIND, describe_kind, is_container, split_of
from rootstock.ingest.folder_tree import Folder
from rootstock.ingest.layout import ANY, SPLITS, Layout, Parts
from rootstock.system.errors import SourceError

MAX_LISTED = 5  # folders that an error lists


class AmbiguousLayoutError(SourceError):
    """A layout with more than one reading; `seen` describes what was found."""

    def __init__(self, where: str, seen: str, *ways: str) -> None:
        how = f"To decide, set ingest.sources[].layout, classes_at or splits: {'; '.join(ways)}"
        super().__init__(f"ingest.sources: {where}: {seen}. {how}.")
        self.seen = seen


def all_classes(layout: Layout) -> str:
    """Suggest reading every folder as a class, whatever its name."""
    return f"{layout.as_parameter()}, if all of these are classes"


def which_level(layout: Layout, step: Parts, tops: Collection[str], below: Collection[str]) -> list[str]:
    """Suggest which of two folder levels holds the classes, or that the upper one holds splits.

    Args:
        layout: the layout in which the upper level holds the classes.
        step: the folders between the two levels.
        tops: folder names of the upper level.
        below: folder names of the lower level.
    """
    ways = [
        f"{layout.as_parameter()}, if {names(tops)} are the classes",
        f"{layout.below(ANY, *step).as_parameter()}, if {names(below)} are",
    ]
    if layout.splits or ANY in layout.classes_at:
        return ways
    first, *_, last = sorted(tops)
    ways.append(f"{layout.below(first, *step).as_parameter()}, to read only {first}/")
    if len(tops) <= MAX_LISTED:
        roots = {name: layout.below(name, *step).classes_at for name in sorted(tops)}
        splits = Layout(splits={at: "test" if name == last else "train" for name, at in roots.items()})
        ways.append(f"{splits.as_parameter()}, if these are splits, each {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    return ways


def as_splits(base: Folder, found: Collection[str], layout: Layout) -> list[str]:
    """Suggest reading folders with split names, if they contain folders, as splits."""
    roots = {layout.below(name).classes_at: split_of(name) for name in found if base.folders[name].folders}
    if layout.splits or "train" not in roots.values():
        return []
    return [f"{Layout(splits=roots).as_parameter()}, if these are splits"]


def splits_and_others(base: Folder, roots: dict[str, str], others: list[str], layout: Layout) -> list[str]:
    """Suggest reading splits together with the folders beside them, or the splits alone."""
    if not roots:
        return []
    ways = []
    if "train" in roots.values():
        ways.append(f"{Layout(splits=roots).as_parameter()}, to exclude {names(others)}")
        more = {layout.below(name).classes_at: "train" for name in others if base.folders[name].folders}
    else:
        more = {layout.classes_at: "train"}
    if more:
        ways.append(f"{Layout(splits=more | roots).as_parameter()}, to train on {names(others)}")
    return ways


def only_images(base: Folder, others: set[str], layout: Layout) -> list[str]:
    """Suggest excluding masks by reading only the image folder beside them, if it contains class folders."""
    there = sorted(others & base.folders.keys())
    images = [name for name in there if is_container(name) and base.folders[name].is_divided]
    return [f"{layout.below(name).as_parameter()}, to read only {name}/" for name in images[:1]]


def unlikely_classes_error(
    collections: set[str], tops: Collection[str], layout: Layout, where: str
) -> AmbiguousLayoutError:
    """Return the error for folders of years, cameras or batches that would be classes.

    Args:
        collections: those of the folders that are named like that.
        tops: all folders that would be classes.
        layout: the layout so far.
        where: the source.
    """
    if others := set(tops) - collections:
        kind = describe_kind(COLLECTION_KIND, collections)
        seen = f"{names(collections)}, named like {kind}, would be {classes(collections)}"
        return AmbiguousLayoutError(
            where, f"{seen} beside {names(others)}", all_classes(layout), f"or remove {names(collections)}"
        )
    place, ways = "", [f"{layout.as_parameter()}, if {names(tops)} are the classes"]
    if layout.classes_at:
        outer, _, last = layout.classes_at.rpartition("/")
        place = f"in {layout.classes_at}/, "
        what = "the folders above are the classes" if last == ANY else f"{last}/ is a class (others will follow)"
        ways.insert(0, f"{Layout(outer).as_parameter()}, if {what}")
    return AmbiguousLayoutError(
        where, f"all images are {place}in the folders {names(tops)}, which are probably not classes", *ways
    )


def names(folders: Iterable[str], mark: str = "/") -> str:
    """List folders, shortened if there are many."""
    listed = sorted(folders)
    return ", ".join(f"{name}{mark}" for name in listed[:MAX_LISTED]) + (", ..." if len(listed) > MAX_LISTED else "")


def are(folders: Collection[str]) -> str:
    """Return "is" or "are" for a number of folders."""
    return "is" if len(folders) == 1 else "are"


def classes(folders: Collection[str]) -> str:
    """Return "a class" or "classes" for a number of folders."""
    return "a class" if len(folders) == 1 else "classes"
