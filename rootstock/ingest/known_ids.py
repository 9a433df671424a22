"""The ids of images that are packed already: 32 bytes each, in memory or in a file that processes share."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rootstock.dataset.image_ids import ID, Digests, are_again, digests as _digests

MOST_AS_TEXT = 50_000  # that are kept as they were added, until they are put in order with the others


class KnownIds:
    """A set of image ids, to which ids are added one by one."""

    def __init__(self, ids: Iterable[Sequence[str]] = (), also: Digests | None = None) -> None:
        """Begin with ids, given some at a time, and with digests (n,)."""
        self._ordered = _sorted([*(_digests(some) for some in ids), *([] if also is None else [also])])
        self._added: set[str] = set()

    def __len__(self) -> int:
        return len(self._ordered) + len(self._added)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._added or bool(_among(self._ordered, _digests([str(image_id)]))[0])

    def are_known(self, ids: Sequence[str]) -> list[bool]:
        """Return which ids are in the set; for many at once, which is faster."""
        ordered: list[bool] = _among(self._ordered, _digests(ids)).tolist()
        return [known or image_id in self._added for image_id, known in zip(ids, ordered, strict=True)]

    def add(self, image_id: str) -> None:
        """Add an id."""
        self._added.add(image_id)
        if len(self._added) >= MOST_AS_TEXT:
            self._ordered, self._added = self.in_order(), set()

    def in_order(self) -> Digests:
        """Return all ids as digests (n,), sorted."""
        return _sorted([self._ordered, _digests(list(self._added))])

    def without(self, ids: Iterable[str]) -> "KnownIds":
        """Return the set without some ids."""
        rest = KnownIds()
        rest._ordered = np.setdiff1d(self.in_order(), _digests(list(ids)))
        return rest


def _sorted(parts: Sequence[Digests]) -> Digests:
    joined = np.concatenate([np.empty(0, ID), *parts])
    joined.sort()  # in place: np.unique would need twice as much memory
    is_again = are_again(joined)
    return joined[~is_again] if is_again.any() else joined


def _among(ordered: Digests, wanted: Digests) -> NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(len(wanted), bool)
    found: NDArray[np.bool_] = ordered[np.searchsorted(ordered, wanted).clip(max=len(ordered) - 1)] == wanted
    return found


@dataclass(frozen=True)
class IdsInFile:
    """The ids of known images in a file, which all processes share: of millions, each task would take seconds."""

    path: str

    def __contains__(self, image_id: object) -> bool:
        return bool(_among(_read(self.path), _digests([str(image_id)]))[0])


@contextmanager
def in_file(known: KnownIds) -> Iterator[IdsInFile]:
    """Write ids into a temporary file."""
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, known.in_order())
        file.flush()
        yield IdsInFile(file.name)


@lru_cache(maxsize=1)
def _read(path: str) -> Digests:
    return np.load(Path(path), mmap_mode="r")  # type: ignore[no-any-return]
