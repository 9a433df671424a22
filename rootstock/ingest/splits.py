"""Assign images to train, val and test: permanently, and with images that belong together in one split."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from rootstock.ingest.drawing import HELD_OUT_FIRST, NO_SINGLES, Candidate, Settled, Singles, draw
from rootstock.ingest.groups import components
from rootstock.ingest.near_duplicates import Links

Neighbours = dict[int, list[int]]  # of each image: its near duplicates


def assign_splits(
    images: Sequence[Candidate], near: Links, named: Links, shares: dict[str, float], seed: int,
    settled: Settled = MappingProxyType({}), singles: Singles = NO_SINGLES,
) -> NDArray[np.int8]:  # fmt: skip
    """Assign a split to every new image, in place; existing assignments do not change.

    Images connected by links of either kind form a group. If some of its images have a split, new ones join it; groups
    of only new images are drawn (drawing.py). The order of new images does not matter.

    A group in several splits comes from new images that connect older ones, or from names given after the split. Then
    new images of one name stay together: in the split that has most of that name or, of an unknown name, most of their
    near duplicates. An image near to images of another split than that cannot be assigned: its split stays None.

    Args:
        images: existing and new images.
        near: (m, 2) indices into `images`: near duplicates.
        named: (m, 2) indices into `images`: images with the same group name.
        shares: fractions of train, val and test, summing to 1.
        seed: random seed.
        settled: how many other images there are, which have a split and no link to these.
        singles: new images without any link.

    Returns:
        The split of each of the n singles, (n,), codes of SPLITS.
    """
    component = components(len(images), np.concatenate([near, named]))
    name_of = components(len(images), named)
    neighbours: Neighbours | None = None
    drawn: list[list[int]] = []
    for members in _groups_with_new(images, component):
        splits = {image.split for image in (images[index] for index in members) if image.split}
        new = sorted((at for at in members if not images[at].split), key=lambda at: images[at].image_id)
        if not splits:
            drawn.append(new)
        elif len(splits) == 1:
            for index in new:
                images[index].split = next(iter(splits))
        else:
            neighbours = neighbours or _neighbours(near)
            units = _join_individually(images, members, new, name_of, neighbours)
            drawn += _reunited(images, units, neighbours)
    return draw([[images[index] for index in group] for group in drawn], images, shares, seed, settled, singles)


def _groups_with_new(images: Sequence[Candidate], component: NDArray[np.int32]) -> list[list[int]]:
    """Return the members of each component that has a new image."""
    fresh = {component[index] for index, image in enumerate(images) if not image.split}
    groups: dict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(component):
        if number in fresh:
            groups[number].append(index)
    return list(groups.values())


def _neighbours(near: Links) -> Neighbours:
    found: Neighbours = defaultdict(list)
    for one, other in near.tolist():
        found[one].append(other)
        found[other].append(one)
    return found


def _join_individually(
    images: Sequence[Candidate], members: list[int], new: list[int], name_of: NDArray[np.int32], neighbours: Neighbours
) -> list[list[int]]:
    """Assign the new images of a group in several splits, name by name, beginning with those next to assigned images.

    Returns:
        The new images, by name, that are connected to the others only through images that cannot be assigned.
    """
    of_name: dict[int, Counter[str]] = defaultdict(Counter)  # assigned images, by split
    for image, name in ((images[at], name_of[at]) for at in members):
        of_name[name].update([image.split] if image.split else [])
    units: dict[int, list[int]] = defaultdict(list)
    for index in new:
        units[name_of[index]].append(index)

    def near_splits(index: int) -> list[str]:
        return [split for other in neighbours.get(index, ()) if (split := images[other].split)]

    def votes(name: int) -> Counter[str]:
        return of_name[name] or Counter(split for index in units[name] for split in near_splits(index))

    order = {name: at for at, name in enumerate(units)}
    waiting, ready = set(units), [name for name in units if votes(name)]
    while ready:  # a chain of images of a video has as many rounds
        waiting.difference_update(ready)
        beside: set[int] = set()  # the names next to what is assigned in this round: no others can have become ready
        for name in ready:
            counts = votes(name)
            chosen = max(HELD_OUT_FIRST, key=counts.__getitem__)
            for index in units[name]:
                if set(near_splits(index)) <= {chosen}:
                    images[index].split = chosen
                    beside.update(name_of[other] for other in neighbours.get(index, ()))
        ready = sorted(beside & waiting, key=order.__getitem__)
    return [units[name] for name in units if name in waiting]


def _reunited(images: Sequence[Candidate], units: list[list[int]], neighbours: Neighbours) -> list[list[int]]:
    """Return the groups that near duplicates still form among `units`, with their images in the order of their ids."""
    unit_of = {index: number for number, unit in enumerate(units) for index in unit}
    near = ((number, other) for at, number in unit_of.items() for other in neighbours.get(at, ()))
    links = [(number, unit_of[other]) for number, other in near if other in unit_of]
    component = components(len(units), np.array(links, np.int64).reshape(-1, 2))
    groups: dict[int, list[int]] = defaultdict(list)
    for number, unit in zip(component.tolist(), units, strict=True):
        groups[number] += unit
    return [sorted(group, key=lambda at: images[at].image_id) for group in groups.values()]
