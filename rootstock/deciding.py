"""How a source is laid out, where nobody has said: which of its folders are classes, which are splits.

What is certain is taken so; where a model could learn to tell cameras, years or splits apart instead of classes, a run
stops, says what it sees, and names the parameter that decides. What was decided is kept (`rootstock/layouts.py`).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from rootstock.errors import SourceError
from rootstock.folder_names import (
    is_collection,
    is_container,
    is_unlabelled,
    masks_among,
    mentioned_split,
    split_of,
)
from rootstock.labels import look
from rootstock.layout import ANY, SPLITS, Layout, Parts

FEW = 0.1  # a share of images that says nothing: a cover picture beside the class folders
SHOWN = 5  # names that an error gives
TWO = 2


@dataclass
class Folder:
    """A folder of a listing: how many images lie right in it, how many in it at all, its sub-folders that hold some."""

    images: int = 0
    total: int = 0
    folders: "dict[str, Folder]" = field(default_factory=dict)

    @property
    def is_divided(self) -> bool:
        """Whether, but for a few, its images lie in sub-folders."""
        return bool(self.folders) and self.images <= FEW * self.total


class Undecided(SourceError):  # noqa: N818 - a person decides
    """A layout that could mean two things; `seen` says what is there."""

    def __init__(self, message: str, seen: str) -> None:
        super().__init__(message)
        self.seen = seen


def tree(images: Mapping[Parts, int]) -> Folder:
    """Build the tree of folders from how many images lie in each."""
    top = Folder()
    for parts, count in images.items():
        at = top
        at.total += count
        for part in parts:
            at = at.folders.setdefault(part, Folder())
            at.total += count
        at.images += count
    return top


def merged(folders: Iterable[Folder]) -> Folder:
    """Lay folders over each other."""
    both = Folder()
    below: dict[str, list[Folder]] = {}
    for one in folders:
        both.images += one.images
        both.total += one.total
        for name, inner in one.folders.items():
            below.setdefault(name, []).append(inner)
    both.folders = {name: merged(inner) if len(inner) > 1 else inner[0] for name, inner in below.items()}
    return both


def decide(images: Mapping[Parts, int], where: str) -> Layout:
    """Decide how a source is laid out.

    Args:
        images: how many images lie in each folder.
        where: the source, for an error.

    Raises:
        Undecided: it could mean two things, or nothing that can be trained on.
    """
    shared, base = below_shared(tree(images))
    named = {name: split for name in base.folders if (split := split_of(name))}
    if named and not _is_a_vehicle(named, base):
        roots = _split_folders(shared, base, _resolved(named), where)
        deeper = _levels(merged(at for at, _ in roots.values()), "", where)
        return Layout(splits={_joined((*parts, *[ANY] * deeper)): split for parts, (_, split) in roots.items()})
    if "" not in (spoken := {mentioned_split(name) for name in base.folders}) and len(spoken) > 1:
        raise _undecided(where, f"the folders {_names(base.folders)} speak of splits", _say_splits(base.folders))
    deeper = _levels(base, "/".join(shared), where)
    return Layout(classes_at=_joined((*shared, *[ANY] * deeper)))


def below_shared(top: Folder) -> tuple[Parts, Folder]:
    """Look through folders that all images share, but for a few that lie beside them; a split is none of these."""
    parts: Parts = ()
    at = top
    while len(at.folders) == 1:
        [(name, inner)] = at.folders.items()
        if split_of(name) or not inner.is_divided:
            break
        parts, at = (*parts, name), inner
    return parts, at


def split_folders(images: Mapping[Parts, int], within: Parts) -> Layout:
    """Read the splits off the names of folders, where a person says that they are splits; others say nothing."""
    top = tree(images)
    for part in within:
        top = top.folders.get(part, Folder())
    shared, base = below_shared(top)
    named = _resolved({name: split for name in base.folders if (split := split_of(name))})
    roots = {_joined((*within, *shared, *inner)): split for inner, (_, split) in _inner(base, named).items()}
    return Layout(splits=roots)


def check_new_classes(images: Mapping[Parts, int], layout: Layout, known: Collection[str], where: str) -> None:
    """Stop where a folder that has come to a source of known layout is hardly a class.

    Raises:
        Undecided: it has the name of a split or of masks, or holds folders that are classes.
    """
    found: dict[str, list[Folder]] = {}
    for root in layout.roots:
        for at in _at(tree(images), root):
            for name, folder in at.folders.items():
                found.setdefault(name, []).append(folder)
    classes = Folder(folders={name: merged(folders) for name, folders in found.items()})
    _check_names(classes, set(known), where)


def _at(top: Folder, root: Parts) -> list[Folder]:
    found = [top]
    for part in root:
        found = [inner for at in found for name, inner in at.folders.items() if part in (ANY, name)]
    return found


def _is_a_vehicle(named: Mapping[str, str], base: Folder) -> bool:
    """Whether `train` is a class among others: the only name of a split, and none of its folders is one of theirs."""
    if [name.casefold() for name in named] != ["train"] or len(base.folders) <= TWO:
        return False
    [train] = named
    others = {inner for name, folder in base.folders.items() if name != train for inner in folder.folders}
    return not others & base.folders[train].folders.keys()


def _resolved(named: dict[str, str]) -> dict[str, str]:
    """Take `eval` beside another validation folder for the test split, where no folder is that by its name."""
    evaluated = [name for name, split in named.items() if split == "val" and "eval" in name.casefold()]
    others = [name for name, split in named.items() if split == "val" and name not in evaluated]
    if "test" not in named.values() and others:
        return named | dict.fromkeys(evaluated, "test")
    return named


def _split_folders(shared: Parts, base: Folder, named: dict[str, str], where: str) -> dict[Parts, tuple[Folder, str]]:
    """Find the folders that hold the classes of each split."""
    inner = _inner(base, named)
    with_classes = {parts[0] for parts, (at, _) in inner.items() if at.folders}
    others = [name for name in base.folders if name not in named and not is_unlabelled(name)]
    given = {named[name] for name in with_classes}
    if others and not ("train" in given and len(given) > 1):
        seen = f"{_names(named)} {_is(named)} named as a split, {_names(others)} beside {_it(named)} {_is(others)} not"
        raise _undecided(where, seen, _say_splits(named), "layout: class_folders, if all of these are classes")
    if not with_classes:
        seen = f"{_names(named)} {_is(named)} named as splits and {'hold' if len(named) > 1 else 'holds'} no folders"
        raise _undecided(
            where, seen, "Expected class folders in each", "layout: class_folders, if these are the classes"
        )
    if "train" not in given:
        seen = f"{_names(named)} {_is(named)} named as {_names(sorted(given), '')}, and nothing is there to train on"
        raise _undecided(where, seen, "splits: {" + f"{next(iter(named))}: train" + "} to train on it")
    return {(*shared, *parts): found for parts, found in inner.items()}


def _inner(base: Folder, named: Mapping[str, str]) -> dict[Parts, tuple[Folder, str]]:
    """Look through a folder within a split that repeats its name, or is called images: seg_train/seg_train."""
    beside = {inner for name in named for inner in base.folders[name].folders if len(base.folders[name].folders) > 1}
    roots: dict[Parts, tuple[Folder, str]] = {}
    for name, split in named.items():
        parts: Parts = (name,)
        at = base.folders[name]
        while len(at.folders) == 1:
            [(only, inner)] = at.folders.items()
            if not ((inner.is_divided and split_of(only) == split) or (is_container(only) and only not in beside)):
                break
            parts, at = (*parts, only), inner
        roots[parts] = at, split
    return roots


def _levels(base: Folder, shared: str, where: str) -> int:
    """Say how many levels of collections (cameras, years) lie above the classes.

    Raises:
        Undecided: the folders may be classes, or collections of them, or splits, or masks.
    """
    tops = base.folders
    _check_names(base, set(), where)
    if len(tops) < TWO:
        return 0
    collections = all(map(is_collection, tops))
    if all(folder.is_divided for folder in tops.values()):
        subs = Counter(name for folder in tops.values() for name in folder.folders)
        inner_collections = all(map(is_collection, subs))
        below = merged(tops.values())
        if collections and not (inner_collections and any(not at.is_divided for at in below.folders.values())):
            return 1 + _levels(below, "", where)
        if all(map(is_container, subs)):  # ants/images/1.jpg
            return 0
        repeated = sum(count > 1 for count in subs.values()) * 2 >= len(subs)
        if repeated and all(map(split_of, subs)):
            seen = f"{_names(tops)} each hold {_names(subs)}, splits by their names"
            raise _undecided(where, seen, "Expected the splits above the classes", "layout: class_folders to have "
                             "splits drawn")  # fmt: skip
        if repeated and (collections or not inner_collections):
            seen = f"{_names(tops)} hold the same folders ({_names(subs)})"
            raise _undecided(where, seen, _say_levels(tops, subs, shared))
    if collections:
        place = f"in {shared}/, " if shared else ""
        seen = f"all images lie {place}in the folders {_names(tops)}, which are hardly classes"
        above = f'classes_at: "{_parent(shared)}", if {shared.rpartition("/")[2]} is one (others are to come)'
        here = f'classes_at: "{shared or "."}", if {_names(tops)} are the classes'
        raise _undecided(where, seen, *([above] if shared else []), here)
    return 0


def _check_names(base: Folder, known: set[str], where: str) -> None:
    """Stop where folders have names of splits or of masks, or hold folders that are classes themselves."""
    accepted = set(map(look, known))
    new = {name: folder for name, folder in base.folders.items() if look(name) not in accepted}
    decide_so = "layout: class_folders (with classes_at, if need be), if all of these are classes"
    vehicle = [name for name in base.folders if name.casefold() == "train"] if len(base.folders) > TWO else []
    if splits := [name for name in new if split_of(name) and name not in vehicle]:
        seen = f"beside {_names(set(base.folders) - set(splits)) or 'nothing else'}, {_names(splits)} would be a class"
        raise _undecided(where, f"{seen}, and is named as a split", _say_splits(splits), decide_so)
    if masks := [name for name in masks_among(base.folders) if name in new]:
        seen = f"{_names(masks)} would be a class beside {_names(set(base.folders) - set(masks)) or 'nothing else'}"
        raise _undecided(
            where, f"{seen}, and holds masks or annotations by its name", "Leave these out of the source", decide_so
        )
    looks = accepted | set(map(look, base.folders))
    for name, folder in new.items():
        inside = [inner for inner in folder.folders if look(inner) in looks - {look(name)}]
        if folder.is_divided and len(inside) == len(folder.folders):
            seen = f"{name}/ holds {_names(inside)}, which are classes beside it"
            raise _undecided(where, seen, f"Move these out of {name}/", decide_so)


def _undecided(where: str, seen: str, *remedies: str) -> Undecided:
    how = f"Say which is meant by ingest.sources[].layout, classes_at or splits: {'; '.join(remedies)}"
    return Undecided(f"ingest.sources: {where}: {seen}. {how}.", seen)


def _say_splits(names: Iterable[str]) -> str:
    shown = {name: split_of(name) or mentioned_split(name) or "train" for name in sorted(names)[:SHOWN]}
    return "splits: {" + ", ".join(f"{name}: {split}" for name, split in shown.items()) + "}, each " + "/".join(SPLITS)


def _say_levels(tops: Iterable[str], subs: Iterable[str], shared: str) -> str:
    own, below = shared or ".", f"{shared}/*" if shared else "*"
    return f'classes_at: "{own}", if {_names(tops)} are the classes; classes_at: "{below}", if {_names(subs)} are'


def _names(names: Iterable[str], mark: str = "/") -> str:
    listed = sorted(names)
    return ", ".join(f"{name}{mark}" for name in listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")


def _is(names: Collection[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _it(names: Collection[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _parent(folder: str) -> str:
    return folder.rpartition("/")[0] or "."


def _joined(parts: Iterable[str]) -> str:
    return "/".join(parts)
