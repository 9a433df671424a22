"""Which images look alike: links between perceptual hashes that differ in a few bits."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rootstock.images.perceptual_hash import HASH_BITS

Links = NDArray[np.int64]
# All pairs that share a band are compared where these are no more than so many (2 s), and have no more links than this
# for each hash, and these: a million photos' hashes are far below. Where more crowd, enough links are found instead.
COMPARED, LINKS_EACH, LINKS = 2 * 10**8, 8, 10**6
LARGE_BUCKET, PIVOTS = 4096, 64  # hashes; those compared with all others at once: 64 of 100,000 take 60 MB
NONE: Links = np.empty((0, 2), np.int64)


def near_links(hashes: NDArray[np.uint64], bits: int) -> Links:
    """Link the hashes that differ in at most `bits` bits; what is near hangs together, directly or by others.

    Two hashes that differ in at most b bits are equal in at least one of b + 1 bands of bits (pigeonhole), so only
    those that share a band are compared: a million hashes take seconds, where all pairs would take hours. Equal
    hashes are linked to the first of them alone, so that a thousand blank pages make a thousand links. Where hashes
    crowd (100,000 that are nearly alike would have 10 million links and more), the links are enough to hang together
    what is near, and no more.

    Args:
        hashes: (n,) uint64.
        bits: the largest Hamming distance that counts as near.

    Returns:
        (m, 2) int64 indices into `hashes`, sorted, the lower of a pair first.
    """
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    equal = np.stack([first[inverse], np.arange(len(hashes))], axis=1)
    links = [equal[equal[:, 0] != equal[:, 1]]]
    for band in _bands(distinct, np.arange(HASH_BITS, dtype=np.uint64), bits):
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(band[order]) != 0]) if len(order) else order
        buckets = np.diff(np.r_[starts, len(order)])
        near = _all_near(distinct, order, band[order], bits) if (buckets**2).sum() <= 2 * COMPARED else None
        if near is None:
            groups = (order[start : start + size] for start, size in zip(starts, buckets, strict=True) if size > 1)
            near = _joined([group[_enough_near(distinct[group], bits)] for group in groups])
        links.append(np.sort(first[near], axis=1))
    return np.unique(np.concatenate(links), axis=0)


def _bands(hashes: NDArray[np.uint64], varying: NDArray[np.uint64], bits: int) -> Iterator[NDArray[np.uint64]]:
    """Yield `bits` + 1 bands of each hash, made of the bits of these numbers."""
    for chosen in np.array_split(varying, bits + 1):
        band = np.zeros_like(hashes)
        for place, bit in enumerate(chosen):
            band |= ((hashes >> bit) & np.uint64(1)) << np.uint64(place)
        yield band


def _all_near(
    hashes: NDArray[np.uint64], order: NDArray[np.int64], band: NDArray[np.uint64], bits: int
) -> Links | None:
    """Compare each hash with those after it in its bucket, one shift of the sorted order at a time.

    Returns:
        All pairs that are near; None where they are too many.
    """
    found, count, at = [NONE], 0, np.arange(len(order))
    shift = 0
    while len(at):
        shift += 1
        at = at[at + shift < len(order)]
        at = at[band[at] == band[at + shift]]  # whoever left its bucket has no further neighbours there
        one, other = order[at], order[at + shift]
        near = np.bitwise_count(hashes[one] ^ hashes[other]) <= bits
        found.append(np.stack([one[near], other[near]], axis=1))
        count += len(found[-1])
        if count > LINKS_EACH * len(order) + LINKS:
            return None
    return np.concatenate(found)


def _enough_near(hashes: NDArray[np.uint64], bits: int, banded: bool = False) -> Links:
    """Link what hangs together in a bucket by a tree: whoever has been reached is compared with the others alone.

    A large bucket is divided once more, into bands of the bits in which its hashes do differ.
    """
    if len(hashes) > LARGE_BUCKET and not banded:
        differ = np.bitwise_or.reduce(hashes ^ hashes[0])
        varying = np.array([bit for bit in range(HASH_BITS) if int(differ) >> bit & 1], np.uint64)
        found = []
        for band in _bands(hashes, varying, bits):
            order = np.argsort(band, kind="stable")
            groups = np.split(order, np.flatnonzero(np.diff(band[order])) + 1)
            found += [group[_enough_near(hashes[group], bits, banded=True)] for group in groups if len(group) > 1]
        return _joined(found)
    left, links = np.arange(len(hashes)), []
    while len(left):
        reached, left = left[:1], left[1:]
        while len(reached) and len(left):
            some, reached = reached[:PIVOTS], reached[PIVOTS:]
            near = np.bitwise_count(hashes[some][:, None] ^ hashes[left]) <= bits
            hit = near.any(axis=0)
            if hit.any():
                links.append(np.stack([some[near[:, hit].argmax(axis=0)], left[hit]], axis=1))
                reached, left = np.concatenate([reached, left[hit]]), left[~hit]
    return _joined(links)


def _joined(links: Sequence[Links]) -> Links:
    return np.concatenate([NONE, *links])
