"""How a source is laid out, where nobody has said: which of its folders are classes, which are splits.

What is certain is taken so; where a model could learn to tell cameras, years or splits apart instead of classes, a run
stops, says what it sees, and names the parameter that decides. What was decided is kept (layouts.py).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from rootstock.ingest.folder_names import (
    LOT_OR_YEAR,
    called,
    is_collection,
    is_container,
    is_unlabelled,
    lots_among,
    mentioned_split,
    misnamed,
    split_of,
)
from rootstock.ingest.folder_tree import Folder, merged, tree
from rootstock.ingest.labels import look
from rootstock.ingest.layout import ANY, Layout, Parts
from rootstock.ingest.undecided import (
    Undecided,
    all_classes,
    are,
    as_splits,
    classes,
    images_alone,
    names,
    splits_and_others,
    which_level,
)

TWO = 2


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
        splits = {_joined(parts): split for parts, (_, split) in roots.items()}
        return _settled(merged(at for at, _ in roots.values()), Layout(splits=splits), where)
    layout = Layout(_joined(shared))
    _check_spoken(base, layout, where)
    return _settled(base, layout, where)


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
    _check_names(classes, set(known), layout, where)


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
    """Find the folders that hold the classes of each split.

    Raises:
        Undecided: other folders lie beside them, none of them holds classes, or there is nothing to train on.
    """
    inner = _inner(base, named)
    roots = {_joined((*shared, *parts)): split for parts, (at, split) in inner.items() if at.folders}
    others = [name for name in base.folders if name not in named and not is_unlabelled(name)]
    if others and not ("train" in roots.values() and len(set(roots.values())) > 1):
        kind, them = ("a split", "it") if len(named) == 1 else ("splits", "them")
        seen = f"{names(named)} {are(named)} named as {kind}, {names(others)} beside {them} {are(others)} not"
        raise Undecided(
            where,
            seen,
            *splits_and_others(base, roots, others, Layout(_joined(shared))),
            all_classes(Layout(_joined(shared))),
        )
    if not roots:
        seen = f"{names(named)} {are(named)} named as splits and {'hold' if len(named) > 1 else 'holds'} no folders"
        expected = "expected class folders in each, or a table that says what each image shows"
        raise Undecided(where, f"{seen}; {expected}", f"layout: class_folders, if {names(named)} are the classes")
    if "train" not in roots.values():
        seen = (
            f"{names(named)} {are(named)} named as {names(set(roots.values()), '')}, and nothing is there to train on"
        )
        largest, _ = max(inner.items(), key=lambda root: root[1][0].total if root[1][0].folders else 0)
        way = Layout(splits=roots | {(at := _joined((*shared, *largest))): "train"})
        raise Undecided(where, seen, f"{way.as_parameter()}, to train on {at}/")
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


def _check_spoken(base: Folder, layout: Layout, where: str) -> None:
    """Stop where the name of each folder speaks of a split beside other things: intel_train, intel_test."""
    spoken = {name: mentioned_split(name) for name in base.folders}
    if all(spoken.values()) and len(set(spoken.values())) > 1:
        roots = {layout.below(name).classes_at: split for name, split in spoken.items() if base.folders[name].folders}
        ways = [f"{Layout(splits=roots).as_parameter()}, if these are splits"] if "train" in roots.values() else []
        raise Undecided(where, f"the folders {names(spoken)} speak of splits", *ways, all_classes(layout))


def _settled(base: Folder, layout: Layout, where: str) -> Layout:
    """Look through levels of collections (cameras, years) above the classes.

    Args:
        base: the folders that are classes by the layout, of all its roots.
        layout: as it is decided so far.
        where: the source, for an error.

    Raises:
        Undecided: the folders may be classes, or collections of them, or splits, or masks.
    """
    _check_names(base, set(), layout, where)
    tops = base.folders
    if len(tops) < TWO:
        return layout
    lots = lots_among(set(tops))
    step, inner = _within_containers(tops)
    if all(folder.is_divided for folder in inner.values()):
        below = merged(inner.values())
        subs = Counter(name for folder in inner.values() for name in folder.folders)
        of_lots = all(map(is_collection, subs))
        if lots == tops.keys() and not (of_lots and any(not at.is_divided for at in below.folders.values())):
            return _settled(below, layout.below(ANY, *step), where)
        if all(map(is_container, subs)):  # ants/images/1.jpg
            return layout
        repeated = sum(count > 1 for count in subs.values()) * 2 >= len(subs)
        if repeated and all(map(split_of, subs)):
            seen = f"{names(tops)} each hold {names(subs)}, splits by their names; expected these above the classes"
            raise Undecided(where, seen, f"{layout.as_parameter()}, to have splits drawn")
        if lots or (repeated and not of_lots):
            same = f"hold {'the same ' if repeated else ''}folders ({names(subs)})"
            raise Undecided(where, f"{names(tops)} {same}", *which_level(layout, step, tops, subs))
    if lots:
        raise _hardly_classes(lots, tops, layout, where)
    return layout


def _hardly_classes(lots: set[str], tops: Collection[str], layout: Layout, where: str) -> Undecided:
    if others := set(tops) - lots:
        seen = f"{names(lots)}, named as {called(LOT_OR_YEAR, lots)}, would be {classes(lots)}"
        return Undecided(where, f"{seen} beside {names(others)}", all_classes(layout), f"or take {names(lots)} away")
    place, ways = "", [f"{layout.as_parameter()}, if {names(tops)} are the classes"]
    if layout.classes_at:
        outer, _, last = layout.classes_at.rpartition("/")
        place = f"in {layout.classes_at}/, "
        what = "the folders above these are" if last == ANY else f"{last}/ is one (others are to come)"
        ways.insert(0, f"{Layout(outer).as_parameter()}, if {what}")
    return Undecided(where, f"all images lie {place}in the folders {names(tops)}, which are hardly classes", *ways)


def _within_containers(tops: Mapping[str, Folder]) -> tuple[Parts, dict[str, Folder]]:
    """Look through one folder of images within each: amazon/images/mug; says what it is called, `*` if variously."""
    only = {name: next(iter(folder.folders)) for name, folder in tops.items() if len(folder.folders) == 1}
    inner = {name: tops[name].folders[within] for name, within in only.items() if is_container(within)}
    if len(inner) < len(tops) or not all(folder.is_divided for folder in inner.values()):
        return (), dict(tops)
    called = set(only.values())
    return (called.pop() if len(called) == 1 else ANY,), inner


def _check_names(base: Folder, known: set[str], layout: Layout, where: str) -> None:
    """Stop where what would be a class has the name of splits, masks or the like, or holds splits or classes.

    Args:
        base: the folders that are classes by the layout.
        known: the classes that are accepted.
        layout: as it is so far.
        where: the source, for an error.

    Raises:
        Undecided: one of them has, or does.
    """
    accepted = set(map(look, known))
    new = {name: folder for name, folder in base.folders.items() if look(name) not in accepted}
    all_names = {*base.folders, *known}
    for kind, named in misnamed(new, all_names, is_first=not known).items():
        others = all_names - named
        if found := named & new.keys():
            beside = f" beside {names(others)}" if others else ""
            seen = f"{names(found)}, named as {called(kind, found)}, would be {classes(found)}{beside}"
            ways = [*as_splits(base, found, layout), *images_alone(base, others, layout), all_classes(layout)]
            raise Undecided(where, seen, *ways, f"or take {names(found)} away")
    _check_held(new, all_names, layout, where)


def _check_held(new: Mapping[str, Folder], all_names: set[str], layout: Layout, where: str) -> None:
    """Stop where what would be a class holds splits, or what is a class beside it.

    Args:
        new: the folders that are looked at.
        all_names: these, and the classes that are there.
        layout: as it is so far.
        where: the source, for an error.

    Raises:
        Undecided: one does.
    """
    in_splits = {name: folder for name, folder in new.items() if folder.folders and all(map(split_of, folder.folders))}
    if in_splits and len(in_splits) < len(all_names):
        name, folder = next(iter(in_splits.items()))
        seen = (
            f"{name}/ holds {names(folder.folders)}, splits by their names, and {names(all_names - {name})} beside it"
        )
        alone = as_splits(folder, folder.folders, layout.below(name))
        raise Undecided(
            where, f"{seen} would be classes", *alone, all_classes(layout), "or make it a source of its own"
        )
    looks = set(map(look, all_names))
    for name, folder in new.items():
        inside = [inner for inner in folder.folders if look(inner) in looks - {look(name)}]
        if folder.is_divided and inside and len(inside) * TWO >= len(folder.folders):
            seen = f"{name}/ holds {names(inside)}, which {are(inside)} {classes(inside)} beside it"
            alone = [] if layout.splits else [f"{layout.below(name).as_parameter()}, to read {name}/ alone"]
            raise Undecided(where, seen, *alone, all_classes(layout), f"or take {name}/ away")


def _joined(parts: Iterable[str]) -> str:
    return "/".join(parts)
