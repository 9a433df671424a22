"""Detect the layout of a source: which of its folders are classes, and which are splits.

Unambiguous layouts are accepted. Where a model could learn to tell cameras, years or splits apart instead of classes,
the run stops, says what it found, and names the parameters that decide. The result is kept (layout_choice.py).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from rootstock.ingest.ambiguity import (
    AmbiguousLayoutError,
    all_classes,
    are,
    as_splits,
    classes,
    names,
    only_images,
    splits_and_others,
    unlikely_classes_error,
    which_level,
)
from rootstock.ingest.folder_names import (
    collections_among,
    describe_kind,
    is_collection,
    is_container,
    is_unlabelled,
    mentioned_split,
    split_of,
    suspicious_names,
)
from rootstock.ingest.folder_tree import Folder, merged, tree
from rootstock.ingest.labels import lookalike_key
from rootstock.ingest.layout import ANY, Layout, Parts

TWO = 2


def detect(images: Mapping[Parts, int], where: str) -> Layout:
    """Detect the layout of a source.

    Args:
        images: number of images in each folder.
        where: the source, for an error.

    Raises:
        AmbiguousLayoutError: the layout is ambiguous, or has nothing to train on.
    """
    shared, base = below_shared(tree(images))
    named = {name: split for name in base.folders if (split := split_of(name))}
    if named and not _is_class_named_train(named, base):
        roots = _split_folders(shared, base, _resolve_eval(named), where)
        splits = {_joined(parts): split for parts, (_, split) in roots.items()}
        return _below_collections(merged(at for at, _ in roots.values()), Layout(splits=splits), where)
    layout = Layout(_joined(shared))
    _check_split_words(base, layout, where)
    return _below_collections(base, layout, where)


def below_shared(top: Folder) -> tuple[Parts, Folder]:
    """Descend through folders that contain almost all images, stopping at split folders."""
    parts: Parts = ()
    at = top
    while len(at.folders) == 1:
        [(name, inner)] = at.folders.items()
        if split_of(name) or not inner.is_divided:
            break
        parts, at = (*parts, name), inner
    return parts, at


def split_folders(images: Mapping[Parts, int], within: Parts) -> Layout:
    """Return the split layout from folder names, if the user set layout: split_folders; other folders are ignored."""
    top = tree(images)
    for part in within:
        top = top.folders.get(part, Folder())
    shared, base = below_shared(top)
    named = _resolve_eval({name: split for name in base.folders if (split := split_of(name))})
    roots = {_joined((*within, *shared, *inner)): split for inner, (_, split) in _class_roots(base, named).items()}
    return Layout(splits=roots)


def check_new_classes(images: Mapping[Parts, int], layout: Layout, known: Collection[str], where: str) -> None:
    """Check that new folders in a source of known layout are plausible classes.

    Raises:
        AmbiguousLayoutError: one is named like a split or masks, or contains class folders.
    """
    found: dict[str, list[Folder]] = {}
    for root in layout.roots:
        for at in _folders_at(tree(images), root):
            for name, folder in at.folders.items():
                found.setdefault(name, []).append(folder)
    classes = Folder(folders={name: merged(folders) for name, folders in found.items()})
    _check_names(classes, set(known), layout, where)


def _folders_at(top: Folder, root: Parts) -> list[Folder]:
    found = [top]
    for part in root:
        found = [inner for at in found for name, inner in at.folders.items() if part in (ANY, name)]
    return found


def _is_class_named_train(named: Mapping[str, str], base: Folder) -> bool:
    """Whether `train` is a class (the vehicle): the only split name, sharing no subfolder with its siblings."""
    if [name.casefold() for name in named] != ["train"] or len(base.folders) <= TWO:
        return False
    [train] = named
    others = {inner for name, folder in base.folders.items() if name != train for inner in folder.folders}
    return not others & base.folders[train].folders.keys()


def _resolve_eval(named: dict[str, str]) -> dict[str, str]:
    """Read `eval` as the test split if there is another validation folder and no test folder."""
    evaluated = [name for name, split in named.items() if split == "val" and "eval" in name.casefold()]
    others = [name for name, split in named.items() if split == "val" and name not in evaluated]
    if "test" not in named.values() and others:
        return named | dict.fromkeys(evaluated, "test")
    return named


def _split_folders(shared: Parts, base: Folder, named: dict[str, str], where: str) -> dict[Parts, tuple[Folder, str]]:
    """Return the parent folder of the classes of each split.

    Raises:
        AmbiguousLayoutError: there are other folders beside them, none contains classes, or none is for training.
    """
    inner = _class_roots(base, named)
    roots = {_joined((*shared, *parts)): split for parts, (at, split) in inner.items() if at.folders}
    others = [name for name in base.folders if name not in named and not is_unlabelled(name)]
    if others and not ("train" in roots.values() and len(set(roots.values())) > 1):
        kind, them = ("a split", "it") if len(named) == 1 else ("splits", "them")
        seen = f"{names(named)} {are(named)} named like {kind}, but {names(others)} beside {them} {are(others)} not"
        raise AmbiguousLayoutError(
            where,
            seen,
            *splits_and_others(base, roots, others, Layout(_joined(shared))),
            all_classes(Layout(_joined(shared))),
        )
    if not roots:
        seen = f"{names(named)} {are(named)} named like splits, but without folders inside"
        expected = "expected class folders in each, or a table with the label of each image"
        raise AmbiguousLayoutError(
            where, f"{seen}; {expected}", f"layout: class_folders, if {names(named)} are the classes"
        )
    if "train" not in roots.values():
        seen = (
            f"{names(named)} {are(named)} named like {names(set(roots.values()), '')}, and there is nothing to train on"
        )
        largest, _ = max(inner.items(), key=lambda root: root[1][0].total if root[1][0].folders else 0)
        way = Layout(splits=roots | {(at := _joined((*shared, *largest))): "train"})
        raise AmbiguousLayoutError(where, seen, f"{way.as_parameter()}, to train on {at}/")
    return {(*shared, *parts): found for parts, found in inner.items()}


def _class_roots(base: Folder, named: Mapping[str, str]) -> dict[Parts, tuple[Folder, str]]:
    """Descend through a folder within a split that repeats its name or is just named images: seg_train/seg_train."""
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


def _check_split_words(base: Folder, layout: Layout, where: str) -> None:
    """Check for folder names that all mention a split among other words: intel_train, intel_test."""
    mentioned = {name: mentioned_split(name) for name in base.folders}
    if all(mentioned.values()) and len(set(mentioned.values())) > 1:
        roots = {
            layout.below(name).classes_at: split for name, split in mentioned.items() if base.folders[name].folders
        }
        ways = [f"{Layout(splits=roots).as_parameter()}, if these are splits"] if "train" in roots.values() else []
        raise AmbiguousLayoutError(
            where, f"the folder names {names(mentioned)} mention splits", *ways, all_classes(layout)
        )


def _below_collections(base: Folder, layout: Layout, where: str) -> Layout:
    """Descend through levels of collections (cameras, years) above the classes.

    Args:
        base: the class folders of the layout so far, merged over its roots.
        layout: the layout so far.
        where: the source, for an error.

    Raises:
        AmbiguousLayoutError: the folders may be classes, collections of classes, splits or masks.
    """
    _check_names(base, set(), layout, where)
    tops = base.folders
    if len(tops) < TWO:
        return layout
    collections = collections_among(set(tops))
    step, inner = _within_containers(tops)
    if all(folder.is_divided for folder in inner.values()):
        below = merged(inner.values())
        subs = Counter(name for folder in inner.values() for name in folder.folders)
        are_collections = all(map(is_collection, subs))
        if collections == tops.keys() and not (
            are_collections and any(not at.is_divided for at in below.folders.values())
        ):
            return _below_collections(below, layout.below(ANY, *step), where)
        if all(map(is_container, subs)):  # ants/images/1.jpg
            return layout
        repeated = sum(count > 1 for count in subs.values()) * 2 >= len(subs)
        if repeated and all(map(split_of, subs)):
            seen = f"{names(tops)} each contain {names(subs)}, named like splits; expected splits above the classes"
            raise AmbiguousLayoutError(where, seen, f"{layout.as_parameter()}, to draw the splits at random")
        if collections or (repeated and not are_collections):
            same = f"contain {'the same ' if repeated else ''}folders ({names(subs)})"
            raise AmbiguousLayoutError(where, f"{names(tops)} {same}", *which_level(layout, step, tops, subs))
    if collections:
        raise unlikely_classes_error(collections, tops, layout, where)
    return layout


def _within_containers(tops: Mapping[str, Folder]) -> tuple[Parts, dict[str, Folder]]:
    """Descend through a single folder of images in each (amazon/images/mug); return its name, or `*` if they differ."""
    only = {name: next(iter(folder.folders)) for name, folder in tops.items() if len(folder.folders) == 1}
    inner = {name: tops[name].folders[within] for name, within in only.items() if is_container(within)}
    if len(inner) < len(tops) or not all(folder.is_divided for folder in inner.values()):
        return (), dict(tops)
    inner_names = set(only.values())
    return (inner_names.pop() if len(inner_names) == 1 else ANY,), inner


def _check_names(base: Folder, known: set[str], layout: Layout, where: str) -> None:
    """Check that class folders are not named like splits, masks or similar, and contain no splits or classes.

    Args:
        base: the class folders of the layout.
        known: classes that are already accepted.
        layout: the layout so far.
        where: the source, for an error.

    Raises:
        AmbiguousLayoutError: one of them is, or does.
    """
    accepted = set(map(lookalike_key, known))
    new = {name: folder for name, folder in base.folders.items() if lookalike_key(name) not in accepted}
    all_names = {*base.folders, *known}
    for kind, named in suspicious_names(new, all_names, is_first=not known).items():
        others = all_names - named
        if found := named & new.keys():
            beside = f" beside {names(others)}" if others else ""
            seen = f"{names(found)}, named like {describe_kind(kind, found)}, would be {classes(found)}{beside}"
            ways = [*as_splits(base, found, layout), *only_images(base, others, layout), all_classes(layout)]
            raise AmbiguousLayoutError(where, seen, *ways, f"or remove {names(found)}")
    _check_contents(new, all_names, layout, where)


def _check_contents(new: Mapping[str, Folder], all_names: set[str], layout: Layout, where: str) -> None:
    """Check that no class folder contains splits, or folders named like its siblings.

    Args:
        new: the folders to check.
        all_names: these, and the existing classes.
        layout: the layout so far.
        where: the source, for an error.

    Raises:
        AmbiguousLayoutError: one does.
    """
    in_splits = {name: folder for name, folder in new.items() if folder.folders and all(map(split_of, folder.folders))}
    if in_splits and len(in_splits) < len(all_names):
        name, folder = next(iter(in_splits.items()))
        seen = f"{name}/ contains {names(folder.folders)}, named like splits, and {names(all_names - {name})} beside it"
        alone = as_splits(folder, folder.folders, layout.below(name))
        raise AmbiguousLayoutError(
            where, f"{seen} would be classes", *alone, all_classes(layout), "or make it a separate source"
        )
    keys = set(map(lookalike_key, all_names))
    for name, folder in new.items():
        inside = [inner for inner in folder.folders if lookalike_key(inner) in keys - {lookalike_key(name)}]
        if folder.is_divided and inside and len(inside) * TWO >= len(folder.folders):
            seen = f"{name}/ contains {names(inside)}, which {are(inside)} also {classes(inside)} beside it"
            alone = [] if layout.splits else [f"{layout.below(name).as_parameter()}, to read only {name}/"]
            raise AmbiguousLayoutError(where, seen, *alone, all_classes(layout), f"or remove {name}/")


def _joined(parts: Iterable[str]) -> str:
    return "/".join(parts)
