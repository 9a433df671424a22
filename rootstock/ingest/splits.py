"""Which image goes to train, val or test: stratified, seeded, permanent, and never tearing near duplicates apart."""

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
    """An image and its place: given for those that have one, to be found (None) for new ones.

    `stratum` is what the draw balances over, (domain, label), None where no source offers the image now; `allowed`
    are the splits a new image may go to.
    """

    image_id: str
    stratum: Stratum | None
    allowed: tuple[str, ...] = SPLITS
    split: str | None = None
    group_id: str | None = None


def settle(images: Sequence[Candidate], links: Links, shares: dict[str, float], seed: int) -> None:
    """Assign a split and a group to every new image, in place; images that have them keep them.

    A new image joins the split of those it is near to. Groups of new images alone are drawn, large ones first, then
    in an order that the seed and their names decide, each to the split that its stratum and its class lack most; the
    last groups of a class go where it has nothing yet, so that a class of three has one of each. Where a source's
    folders tear a group apart, all of it goes to the split held out longest (test, then val). An image near to two
    splits at once has no place: its split stays None. In what order new images come makes no difference.

    Args:
        images: older ones before new ones.
        links: (m, 2) indices into `images`, near duplicates.
        shares: of train, val and test; they sum to 1.
        seed: of the draw.
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
            _join_one_by_one(images, new, links[component[links[:, 0]] == number])
    _draw(drawn, images, shares, seed)


def _components(n: int, links: Links) -> NDArray[np.int32]:
    """Number the connected groups; returns (n,), the number of each image's."""
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(n, n))
    component: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return component


def _groups_with_new(images: Sequence[Candidate], component: NDArray[np.int32]) -> dict[int, list[int]]:
    """Collect the groups that hold a new image: number -> indices of the members, in order of arrival."""
    fresh = {component[index] for index, image in enumerate(images) if not image.split}
    groups: dict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(component):
        if number in fresh:
            groups[number].append(index)
    return groups


def _join(new: Candidate, settled: Candidate) -> None:
    new.split, new.group_id = settled.split, settled.group_id


def _join_one_by_one(images: Sequence[Candidate], new: list[int], links: Links) -> None:
    """Settle a group that new images bridge between splits: each joins the one split it is near to, or has no place.

    What hangs on the group by images without a place alone stands for itself.
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
            settled = [images[other] for other in near[index] if images[other].split]
            if not settled:
                image.split, image.group_id = image.allowed[0], image.image_id
            elif len({other.split for other in settled}) == 1:
                _join(image, min(settled, key=lambda other: str(other.group_id)))  # not the first: that is chance
        done = set(ready)
        waiting = [index for index in waiting if index not in done]


def _draw(groups: list[list[Candidate]], images: Sequence[Candidate], shares: dict[str, float], seed: int) -> None:
    have: dict[Stratum, Counter[str]] = defaultdict(Counter)  # images of a stratum, and of a class, by split
    for image in images:
        if image.split:
            _count(have, image)
    left: Counter[tuple[Stratum, tuple[str, ...]]] = Counter()  # images still to be placed
    turns: Counter[tuple[Stratum, tuple[str, ...]]] = Counter()  # groups still to be placed
    allowed_of = [_common(group) for group in groups]
    for group, allowed in zip(groups, allowed_of, strict=True):
        for level in _levels(group[0]):
            left[level, allowed] += len(group)
            turns[level, allowed] += 1
    order = sorted(range(len(groups)), key=lambda at: (-len(groups[at]), _lot(seed, groups[at][0].image_id)))
    for group, allowed in ((groups[at], allowed_of[at]) for at in order):
        levels = _levels(group[0])
        label = levels[-1]
        missing = [name for name in ("train", "test", "val") if name in allowed and not have[label][name]]
        lacks = [_lacks(allowed, have[level], left[level, allowed], shares) for level in levels]
        if missing and len(missing) >= turns[label, allowed]:
            split: str = missing[0]
        else:
            split = max(allowed, key=lambda name: sum(lack[name] for lack in lacks))
        for image in group:
            image.split, image.group_id = split, group[0].image_id
            _count(have, image)
        for level in levels:
            left[level, allowed] -= len(group)
            turns[level, allowed] -= 1


def _levels(image: Candidate) -> tuple[Stratum, ...]:
    """Name what the draw balances over: the stratum and, over all domains, the class."""
    return (image.stratum, ("", image.stratum[1])) if image.stratum else ()


def _count(have: dict[Stratum, Counter[str]], image: Candidate) -> None:
    for level in _levels(image):
        have[level][str(image.split)] += 1


def _lacks(allowed: tuple[str, ...], have: Counter[str], left: int, shares: dict[str, float]) -> dict[str, float]:
    """Say how many images each split lacks of its share, once the `left` ones are placed."""
    total = sum(have[split] for split in allowed) + left
    weight = sum(shares[split] for split in allowed)
    return {split: total * shares[split] / weight - have[split] for split in allowed}


def _lot(seed: int, image_id: str) -> bytes:
    """Return an image's place in the draw, whatever other images there are."""
    return hashlib.sha256(f"{seed}:{image_id}".encode()).digest()


def _common(group: list[Candidate]) -> tuple[str, ...]:
    """Say where a whole group may go."""
    common = [split for split in SPLITS if all(split in image.allowed for image in group)]
    if common:
        return tuple(common)
    claimed = {image.allowed[0] for image in group if len(image.allowed) == 1}
    return (next(split for split in ("test", "val", "train") if split in claimed),)
