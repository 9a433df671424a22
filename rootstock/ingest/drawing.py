"""Draw the splits of groups of new images: stratified by class and domain as well as whole groups allow."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from rootstock.ingest.layout import SPLITS

Stratum = tuple[str, ...]  # (domain, label), or with several labels; over all domains: ("", label)
Settled = Mapping[tuple[Stratum, str], int]  # images of a stratum in a split
Allowed = tuple[str, ...]
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


@dataclass(frozen=True, slots=True)
class _Group:
    images: Sequence[Candidate]
    allowed: Allowed
    counts: Counter[Stratum]  # images per stratum and per class

    @classmethod
    def of(cls, images: Sequence[Candidate], alike: dict[tuple[Stratum | None, Allowed], "_Group"]) -> "_Group":
        """Return the group of some images; those of one image share their counts: there may be millions."""
        first = images[0].stratum, images[0].allowed
        if len(images) == 1 and first in alike:
            return replace(alike[first], images=images)
        group = cls(
            images, allowed_splits(images), Counter(level for image in images for level in _levels(image.stratum))
        )
        if len(images) == 1:
            alike[first] = group
        return group


def draw(
    groups: Iterable[Sequence[Candidate]], images: Sequence[Candidate], shares: dict[str, float], seed: int,
    settled: Settled = MappingProxyType({}),
) -> None:  # fmt: skip
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
    """
    alike: dict[tuple[Stratum | None, Allowed], _Group] = {}
    waiting = [_Group.of(group, alike) for group in groups]
    balance = _Balance(waiting, images, shares, settled)
    for group in sorted(waiting, key=lambda group: (-len(group.images), _random_key(seed, group.images[0].image_id))):
        split = balance.best_split(group)
        balance.assign(group, split)
        for image in group.images:
            image.split = split


class _Balance:
    """Counts the images of each class and stratum that the splits have, and those still to be assigned."""

    def __init__(
        self, groups: Iterable[_Group], images: Iterable[Candidate], shares: dict[str, float], settled: Settled
    ) -> None:
        self.shares = shares
        self.have: dict[Stratum, Counter[str]] = defaultdict(Counter)  # images by split
        self.left: Counter[tuple[Stratum, Allowed]] = Counter()  # images still to be assigned
        self.turns: Counter[tuple[Stratum, Allowed]] = Counter()  # groups still to be assigned
        self.total: Counter[Stratum] = Counter()  # images
        for stratum, split in ((image.stratum, image.split) for image in images if image.split):
            self._count(stratum, split, 1)
        for (stratum, split), count in settled.items():
            self._count(stratum, split, count)
        for group in groups:
            for level, count in group.counts.items():
                self.left[level, group.allowed] += count
                self.turns[level, group.allowed] += 1
                self.total[level] += count

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
