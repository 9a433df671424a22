"""Assign images to train, val and test: stratified, seeded and permanent, with near duplicates kept together."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rootstock.ingest.layout import SPLITS
from rootstock.ingest.near_duplicates import Links

Stratum = tuple[str, str]  # (domain, label)


@dataclass(slots=True)
class Candidate:
    """An image with its split, or None for a new image.

    `stratum` is what the split is stratified by, (domain, label), or None if no source lists the image now; `allowed`
    are the splits a new image may be assigned to.
    """

    image_id: str
    stratum: Stratum | None
    allowed: tuple[str, ...] = SPLITS
    split: str | None = None
    group_id: str | None = None


def assign_splits(images: Sequence[Candidate], links: Links, shares: dict[str, float], seed: int) -> None:
    """Assign a split and a group to every new image, in place; existing assignments do not change.

    A new image joins the split of its near duplicates. Groups of only new images are assigned one by one, large ones
    first, then in a random order given by the seed and their names, each to the split with the largest deficit for
    its stratum and class; the last groups of a class go to splits that have none of it, so that a class of three gets
    one in each. If a source's folders divide a group, all of it goes to the test split, or else val. A near duplicate
    of images in two splits cannot be assigned: its split stays None. The order of new images does not matter.

    Args:
        images: existing images before new ones.
        links: (m, 2) indices into `images`: near duplicates.
        shares: fractions of train, val and test, summing to 1.
        seed: random seed.
    """
    component = _components(len(images), links)
    drawn: list[list[Candidate]] = []
    for number, members in _groups_with_new(images, component).items():
        old = [index for index in members if images[index].split]
        new = sorted(set(members) - set(old), key=lambda index: images[index].image_id)
        if not old:
            drawn.append([images[index] for index in new])
        elif len({images[index].split for index in old}) == 1:
            for index in new:
                _join(images[index], images[old[0]])
        else:
            _join_individually(images, new, links[component[links[:, 0]] == number])
    _draw(drawn, images, shares, seed)


def _components(n: int, links: Links) -> NDArray[np.int32]:
    """Return the index of each image's connected component, (n,)."""
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(n, n))
    component: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return component


def _groups_with_new(images: Sequence[Candidate], component: NDArray[np.int32]) -> dict[int, list[int]]:
    """Return the groups with a new image: component -> indices of its members, in order."""
    fresh = {component[index] for index, image in enumerate(images) if not image.split}
    groups: dict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(component):
        if number in fresh:
            groups[number].append(index)
    return groups


def _join(new: Candidate, assigned: Candidate) -> None:
    new.split, new.group_id = assigned.split, assigned.group_id


def _join_individually(images: Sequence[Candidate], new: list[int], links: Links) -> None:
    """Assign a group whose new images connect several splits: each joins the only split it is near to, or none.

    Images connected to the group only through unassigned images are assigned on their own.
    """
    near: dict[int, list[int]] = defaultdict(list)
    for one, other in links.tolist():
        near[one].append(other)
        near[other].append(one)
    waiting = new
    while waiting:
        ready = [index for index in waiting if any(images[other].split for other in near[index])] or waiting
        for index in ready:
            image = images[index]
            assigned = [images[other] for other in near[index] if images[other].split]
            if not assigned:
                image.split, image.group_id = image.allowed[0], image.image_id
            elif len({other.split for other in assigned}) == 1:
                _join(
                    image, min(assigned, key=lambda other: str(other.group_id))
                )  # not the first, which would depend on the order
        done = set(ready)
        waiting = [index for index in waiting if index not in done]


def _draw(groups: list[list[Candidate]], images: Sequence[Candidate], shares: dict[str, float], seed: int) -> None:
    have: dict[Stratum, Counter[str]] = defaultdict(Counter)  # images per stratum and per class, by split
    for image in images:
        if image.split:
            _count(have, image)
    left: Counter[tuple[Stratum, tuple[str, ...]]] = Counter()  # images still to be assigned
    turns: Counter[tuple[Stratum, tuple[str, ...]]] = Counter()  # groups still to be assigned
    allowed_of = [_allowed_splits(group) for group in groups]
    for group, allowed in zip(groups, allowed_of, strict=True):
        for level in _levels(group[0]):
            left[level, allowed] += len(group)
            turns[level, allowed] += 1
    order = sorted(range(len(groups)), key=lambda at: (-len(groups[at]), _random_key(seed, groups[at][0].image_id)))
    for group, allowed in ((groups[at], allowed_of[at]) for at in order):
        levels = _levels(group[0])
        label = levels[-1]
        missing = [name for name in ("train", "test", "val") if name in allowed and not have[label][name]]
        deficits = [_deficits(allowed, have[level], left[level, allowed], shares) for level in levels]
        if missing and len(missing) >= turns[label, allowed]:
            split: str = missing[0]
        else:
            split = max(allowed, key=lambda name: sum(deficit[name] for deficit in deficits))
        for image in group:
            image.split, image.group_id = split, group[0].image_id
            _count(have, image)
        for level in levels:
            left[level, allowed] -= len(group)
            turns[level, allowed] -= 1


def _levels(image: Candidate) -> tuple[Stratum, ...]:
    """Return the levels of stratification: the stratum, and the class over all domains."""
    return (image.stratum, ("", image.stratum[1])) if image.stratum else ()


def _count(have: dict[Stratum, Counter[str]], image: Candidate) -> None:
    for level in _levels(image):
        have[level][str(image.split)] += 1


def _deficits(allowed: tuple[str, ...], have: Counter[str], left: int, shares: dict[str, float]) -> dict[str, float]:
    """Return how many images each split is short of its share, once the `left` ones are assigned."""
    total = sum(have[split] for split in allowed) + left
    weight = sum(shares[split] for split in allowed)
    return {split: total * shares[split] / weight - have[split] for split in allowed}


def _random_key(seed: int, image_id: str) -> bytes:
    """Return an image's random sort key, independent of other images."""
    return hashlib.sha256(f"{seed}:{image_id}".encode()).digest()


def _allowed_splits(group: list[Candidate]) -> tuple[str, ...]:
    """Return the splits that a whole group may be assigned to."""
    common = [split for split in SPLITS if all(split in image.allowed for image in group)]
    if common:
        return tuple(common)
    claimed = {image.allowed[0] for image in group if len(image.allowed) == 1}
    return (next(split for split in ("test", "val", "train") if split in claimed),)
