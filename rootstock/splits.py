"""Which image goes to train, val or test: stratified, seeded, permanent, and never tearing near duplicates apart."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rootstock.duplicates import Links
from rootstock.layout import SPLITS


@dataclass(slots=True)
class Candidate:
    """An image and its place: given for those that have one, to be found (None) for new ones.

    `stratum` is what the draw balances over, (domain, label); `allowed` are the splits a new image may go to.
    """

    image_id: str
    stratum: tuple[str, str]
    allowed: tuple[str, ...] = SPLITS
    split: str | None = None
    group_id: str | None = None


def settle(images: Sequence[Candidate], links: Links, shares: dict[str, float], seed: int) -> None:
    """Give every new image a split and a group, in place; images that have them keep them.

    A new image joins the split of those it is near to. Groups of new images alone are drawn, in an order that the
    seed and their names decide, each to the split that its stratum lacks most; the first groups of a class go to
    train, test and val in turn, so that a class of three has one of each. Where a source's folders tear a group
    apart, all of it goes to the split held out longest (test, then val). An image near to two splits at once has no
    place: its split stays None.

    Args:
        images: older ones before new ones.
        links: (m, 2) indices into `images`, near duplicates.
        shares: of train, val and test; they sum to 1.
        seed: of the draw.
    """
    drawn: list[list[Candidate]] = []
    for members in _groups_with_new(images, links):
        old = [image for image in members if image.split]
        new = [image for image in members if not image.split]
        if not old:
            drawn.append(new)
        elif len({image.split for image in old}) == 1:
            _join(new, old[0])
        else:
            _join_one_by_one(images, members, links)
    _draw(drawn, images, shares, seed)


def _groups_with_new(images: Sequence[Candidate], links: Links) -> list[list[Candidate]]:
    """Collect the connected groups that hold a new image, members in order of arrival."""
    n = len(images)
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    fresh = {component[index] for index, image in enumerate(images) if not image.split}
    groups: dict[int, list[Candidate]] = defaultdict(list)
    for index, image in enumerate(images):
        if component[index] in fresh:
            groups[component[index]].append(image)
    return list(groups.values())


def _join(new: list[Candidate], settled: Candidate) -> None:
    for image in new:
        image.split, image.group_id = settled.split, settled.group_id


def _join_one_by_one(images: Sequence[Candidate], members: list[Candidate], links: Links) -> None:
    """Settle a group that new images bridge between splits: each joins the one split it is near to, or has no place."""
    near: dict[int, list[Candidate]] = defaultdict(list)
    inside = {id(image) for image in members}
    for one, other in links:
        if id(images[one]) in inside:
            near[id(images[one])].append(images[other])
            near[id(images[other])].append(images[one])
    waiting = [image for image in members if not image.split]
    refused: set[int] = set()
    while waiting:
        ready = [image for image in waiting if any(other.split for other in near[id(image)])]
        if not ready:  # hung on the group by refused images alone: each is its own
            ready = waiting
        for image in ready:
            settled = [other for other in near[id(image)] if other.split]
            if len({other.split for other in settled}) > 1:
                refused.add(id(image))
            elif settled:
                _join([image], settled[0])
            else:
                image.split, image.group_id = image.allowed[0], image.image_id
        done = {id(image) for image in ready}
        waiting = [image for image in waiting if id(image) not in done]


def _draw(
    groups: list[list[Candidate]], images: Sequence[Candidate], shares: dict[str, float], seed: int
) -> None:
    fresh = {id(image) for group in groups for image in group}
    in_stratum: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    in_class: dict[str, Counter[str]] = defaultdict(Counter)
    for image in images:
        if image.split and id(image) not in fresh:
            in_stratum[image.stratum][image.split] += 1
            in_class[image.stratum[1]][image.split] += 1
    for group in sorted(groups, key=lambda group: _lot(seed, group[0].image_id)):
        first = group[0]
        stratum, label = in_stratum[first.stratum], in_class[first.stratum[1]]
        allowed = _common(group)
        missing = [split for split in ("train", "test", "val") if split in allowed and not label[split]]
        split = missing[0] if missing else _most_lacking(allowed, stratum, shares, len(group))
        for image in group:
            image.split, image.group_id = split, first.image_id
            in_stratum[image.stratum][split] += 1
            in_class[image.stratum[1]][split] += 1


def _lot(seed: int, image_id: str) -> bytes:
    """Give an image its place in the draw, whatever other images there are."""
    return hashlib.sha256(f"{seed}:{image_id}".encode()).digest()


def _common(group: list[Candidate]) -> tuple[str, ...]:
    """Say where a whole group may go."""
    common = [split for split in SPLITS if all(split in image.allowed for image in group)]
    if common:
        return tuple(common)
    claimed = {image.allowed[0] for image in group if len(image.allowed) == 1}
    return (next(split for split in ("test", "val", "train") if split in claimed),)


def _most_lacking(allowed: tuple[str, ...], have: Counter[str], shares: dict[str, float], size: int) -> str:
    total = sum(have[split] for split in allowed) + size
    weight = sum(shares[split] for split in allowed)
    return max(allowed, key=lambda split: total * shares[split] / weight - have[split])
