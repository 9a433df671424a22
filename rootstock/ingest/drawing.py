"""Draw the splits of groups of new images: stratified by class and domain as well as whole groups allow."""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from rootstock.dataset import image_ids
from rootstock.dataset.image_ids import Digests
from rootstock.ingest.layout import SPLITS

Stratum = tuple[str, ...]  # (domain, label), or with several labels; over all domains: ("", label)
Settled = Mapping[tuple[Stratum, str], int]  # images of a stratum in a split
Allowed = tuple[str, ...]
AT_ONCE = 10_000  # images
FIRST_SERVED = ("train", "test", "val")  # a class that is too small for all splits is trained on, then tested on
HELD_OUT_FIRST = ("test", "val", "train")  # among splits with equally many images of a group


@dataclass(slots=True)
class Candidate:
    """An image with its split, or None for a new image.

    `stratum` is what the split is stratified by, (domain, label) or (domain, label, label, ...), or None if no source
    lists the image now; `allowed` are the splits a new image may be assigned to.
    """

    image_id: str
    stratum: Stratum | None
    allowed: Allowed = SPLITS
    split: str | None = None


@dataclass(frozen=True)
class Singles:
    """New images that are in no group with others, in columns: as candidates, a million would take half a gigabyte.

    `rows` are their positions in `ids`, (n,); `kind` is the position of each one's stratum and allowed splits in
    `kinds`, (n,).
    """

    ids: Digests = field(default_factory=lambda: np.empty(0, image_ids.ID))
    rows: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    kind: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    kinds: Sequence[tuple[Stratum | None, Allowed]] = ()

    def in_random_order(self, seed: int) -> Iterator[tuple[bytes, int]]:
        """Yield the random sort key and the number of each image, in the order of the keys."""
        starts = np.concatenate([np.empty(0, np.uint64), *self._starts(seed)])
        order = np.argsort(starts).astype(np.int32)
        starts.sort()
        begins = np.ones(len(order), bool)
        begins[1:] = starts[1:] != starts[:-1]
        del starts
        alike: list[tuple[bytes, int]] = []  # nearly always a single one
        for at in range(0, len(order), AT_ONCE):
            some = order[at : at + AT_ONCE]
            names = image_ids.texts(self.ids[self.rows[some]]).to_pylist()
            for is_other, name, number in zip(begins[at : at + AT_ONCE], names, some.tolist(), strict=True):
                if is_other:
                    yield from sorted(alike)
                    alike = []
                alike.append((_random_key(seed, name), number))
        yield from sorted(alike)

    def _starts(self, seed: int) -> Iterator[NDArray[np.uint64]]:
        """Yield the first eight bytes of the keys as numbers that are in the order of the keys."""
        for at in range(0, len(self.rows), AT_ONCE):
            names = image_ids.texts(self.ids[self.rows[at : at + AT_ONCE]]).to_pylist()
            starts = b"".join(_random_key(seed, name)[:8] for name in names)
            yield np.frombuffer(starts, ">u8").astype(np.uint64)


NO_SINGLES = Singles()


@dataclass(frozen=True, slots=True)
class _Group:
    images: Sequence[Candidate]
    allowed: Allowed
    counts: Counter[Stratum]  # images per stratum and per class

    @classmethod
    def of(cls, images: Sequence[Candidate]) -> "_Group":
        """Return the group of some images."""
        return cls(
            images, allowed_splits(images), Counter(level for image in images for level in _levels(image.stratum))
        )


def draw(
    groups: Iterable[Sequence[Candidate]], images: Sequence[Candidate], shares: dict[str, float], seed: int,
    settled: Settled = MappingProxyType({}), singles: Singles = NO_SINGLES,
) -> NDArray[np.int8]:  # fmt: skip
    """Assign each group of new images to a split as a whole, in place.

    Groups are assigned one by one, large ones first, then in a random order given by the seed and their names. The last
    groups of a class go to splits that have none of it, so that a class of three groups gets one in each. Any other
    group goes to the split where the sum of d * c / n over its strata and classes is largest: d is the number of images
    that the split is short of its share, c the number of images in the group, n the number of images of the class.
    This minimises the sum of squared deviations from the shares, relative to n, so that a rare class counts as much as
    a frequent one. An image of several classes counts in each of them (compare the iterative stratification of Sechidis
    et al. 2011).

    Args:
        groups: images that share a split, in the order of their ids.
        images: all images, those that have a split among them.
        shares: fractions of train, val and test, summing to 1.
        seed: random seed.
        settled: how many images there are besides.
        singles: new images that are groups of their own.

    Returns:
        The split of each of the n singles, (n,), codes of SPLITS.
    """
    kinds = [_Group.of([Candidate("", stratum, allowed)]) for stratum, allowed in singles.kinds]
    waiting = [(_random_key(seed, group[0].image_id), _Group.of(group)) for group in groups]
    balance = _Balance(images, shares, settled)
    for _, group in waiting:
        balance.expect(group)
    for kind, count in zip(kinds, np.bincount(singles.kind, minlength=len(kinds)).tolist(), strict=True):
        balance.expect(kind, count)
    waiting.sort(key=lambda entry: (-len(entry[1].images), entry[0]))
    several = sum(len(group.images) > 1 for _, group in waiting)
    alone = ((key, kinds[singles.kind[number]], number) for key, number in singles.in_random_order(seed))
    ones = heapq.merge(((key, group, -1) for key, group in waiting[several:]), alone, key=itemgetter(0))
    found = np.empty(len(singles.rows), np.int8)
    for group, number in chain(((group, -1) for _, group in waiting[:several]), ((one[1], one[2]) for one in ones)):
        split = balance.best_split(group)
        balance.assign(group, split)
        if number >= 0:
            found[number] = SPLITS.index(split)
        else:
            for image in group.images:
                image.split = split
    return found


class _Balance:
    """Counts the images of each class and stratum that the splits have, and those still to be assigned."""

    def __init__(self, images: Iterable[Candidate], shares: dict[str, float], settled: Settled) -> None:
        self.shares = shares
        self.have: dict[Stratum, Counter[str]] = defaultdict(Counter)  # images by split
        self.left: Counter[tuple[Stratum, Allowed]] = Counter()  # images still to be assigned
        self.turns: Counter[tuple[Stratum, Allowed]] = Counter()  # groups still to be assigned
        self.total: Counter[Stratum] = Counter()  # images
        for stratum, split in ((image.stratum, image.split) for image in images if image.split):
            self._count(stratum, split, 1)
        for (stratum, split), count in settled.items():
            self._count(stratum, split, count)

    def expect(self, group: _Group, times: int = 1) -> None:
        """Count a group, or several that are like it, as still to be assigned."""
        for level, count in group.counts.items():
            self.left[level, group.allowed] += count * times
            self.turns[level, group.allowed] += times
            self.total[level] += count * times

    def _count(self, stratum: Stratum | None, split: str, images: int) -> None:
        for level in _levels(stratum):
            self.have[level][split] += images
            self.total[level] += images

    def best_split(self, group: _Group) -> str:
        """Return the split that a group is assigned to."""
        labels = [level for level in group.counts if not level[0]]
        if needed := Counter(split for label in labels for split in self._last_chance(label, group.allowed)):
            return max((split for split in FIRST_SERVED if split in group.allowed), key=needed.__getitem__)
        parts = {level: count / self.total["", level[1]] for level, count in group.counts.items()}
        largest = max(parts.values(), default=1)  # with a single class, all weights are exactly 1
        weighed = [(self._deficits(level, group.allowed), part / largest) for level, part in parts.items()]
        return max(group.allowed, key=lambda split: sum(deficits[split] * weight for deficits, weight in weighed))

    def _last_chance(self, label: Stratum, allowed: Allowed) -> list[str]:
        """Return the first split without a class, if all of its remaining groups are needed for such splits."""
        missing = [split for split in FIRST_SERVED if split in allowed and not self.have[label][split]]
        return missing[:1] if len(missing) >= self.turns[label, allowed] else []

    def _deficits(self, level: Stratum, allowed: Allowed) -> dict[str, float]:
        """Return how many images each split is short of its share, once those left are assigned."""
        have = self.have[level]
        total = sum(have[split] for split in allowed) + self.left[level, allowed]
        weight = sum(self.shares[split] for split in allowed)
        return {split: total * self.shares[split] / weight - have[split] for split in allowed}

    def assign(self, group: _Group, split: str) -> None:
        """Count a group as assigned to a split."""
        for level, count in group.counts.items():
            self.have[level][split] += count
            self.left[level, group.allowed] -= count
            self.turns[level, group.allowed] -= 1


def _levels(stratum: Stratum | None) -> Iterator[Stratum]:
    """Yield the levels of stratification: of each class its images in the domain, and those in all domains."""
    if stratum:
        domain, *labels = stratum
        for label in labels:
            yield domain, label
            yield "", label


def allowed_splits(group: Sequence[Candidate]) -> Allowed:
    """Return the splits that a whole group may be assigned to.

    If its images have none in common, it goes to the split of most of them; among equals, to test or else val.
    """
    if common := _common(group):
        return common
    votes = Counter(split for image in group for split in image.allowed)
    favoured = max(HELD_OUT_FIRST, key=votes.__getitem__)
    return _common([image for image in group if favoured in image.allowed])


def _common(group: Sequence[Candidate]) -> Allowed:
    return tuple(split for split in SPLITS if all(split in image.allowed for image in group))


def _random_key(seed: int, image_id: str) -> bytes:
    """Return an image's random sort key, independent of other images."""
    return hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
