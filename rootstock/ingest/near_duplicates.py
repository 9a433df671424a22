"""Find near duplicates: links between perceptual hashes that differ in only a few bits."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rootstock.images.perceptual_hash import HASH_BITS

Links = NDArray[np.int64]
# All pairs within a band are compared up to this many comparisons (2 s) and links (per hash, plus a constant); a
# million photos stay far below. Above these limits, only enough links to connect each group are found.
MAX_COMPARISONS, MAX_LINKS_PER_HASH, MAX_EXTRA_LINKS = 2 * 10**8, 8, 10**6
LARGE_BUCKET, PIVOTS = 4096, 64  # hashes; pivots compared with all others at once: 64 times 100,000 take 60 MB
NO_LINKS: Links = np.empty((0, 2), np.int64)


def near_links(hashes: NDArray[np.uint64], bits: int) -> Links:
    """Link hashes that differ in at most `bits` bits, so that near duplicates are connected, directly or via others.

    Two hashes that differ in at most b bits are equal in at least one of b + 1 bands of bits (pigeonhole), so only
    hashes that share a band are compared: a million take seconds, where all pairs would take hours. Equal hashes are
    linked only to the first of them, so that a thousand blank pages make a thousand links. In dense clusters (100,000
    nearly equal hashes have more than 10 million links), only enough links to connect them are returned.

    Args:
        hashes: (n,) uint64.
        bits: maximum Hamming distance of near duplicates.

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
        near = _all_pairs(distinct, order, band[order], bits) if (buckets**2).sum() <= 2 * MAX_COMPARISONS else None
        if near is None:
            groups = (order[start : start + size] for start, size in zip(starts, buckets, strict=True) if size > 1)
            near = _concatenated([group[_spanning_links(distinct[group], bits)] for group in groups])
        links.append(np.sort(first[near], axis=1))
    return np.unique(np.concatenate(links), axis=0)


def _bands(hashes: NDArray[np.uint64], varying: NDArray[np.uint64], bits: int) -> Iterator[NDArray[np.uint64]]:
    """Yield `bits` + 1 bands of each hash, from the bit positions in `varying`."""
    for chosen in np.array_split(varying, bits + 1):
        band = np.zeros_like(hashes)
        for place, bit in enumerate(chosen):
            band |= ((hashes >> bit) & np.uint64(1)) << np.uint64(place)
        yield band


def _all_pairs(
    hashes: NDArray[np.uint64], order: NDArray[np.int64], band: NDArray[np.uint64], bits: int
) -> Links | None:
    """Compare each hash with those after it in its bucket, one shift of the sorted order at a time.

    Returns:
        All near pairs; None if there are too many.
    """
    found, count, at = [NO_LINKS], 0, np.arange(len(order))
    shift = 0
    while len(at):
        shift += 1
        at = at[at + shift < len(order)]
        at = at[band[at] == band[at + shift]]  # a hash past the end of its bucket has no further neighbours
        one, other = order[at], order[at + shift]
        near = np.bitwise_count(hashes[one] ^ hashes[other]) <= bits
        found.append(np.stack([one[near], other[near]], axis=1))
        count += len(found[-1])
        if count > MAX_LINKS_PER_HASH * len(order) + MAX_EXTRA_LINKS:
            return None
    return np.concatenate(found)


def _spanning_links(hashes: NDArray[np.uint64], bits: int, banded: bool = False) -> Links:
    """Link each connected group of a bucket by a spanning tree, comparing reached hashes only with unreached ones.

    A large bucket is first divided into bands of the bits that vary within it.
    """
    if len(hashes) > LARGE_BUCKET and not banded:
        differ = np.bitwise_or.reduce(hashes ^ hashes[0])
        varying = np.array([bit for bit in range(HASH_BITS) if int(differ) >> bit & 1], np.uint64)
        found = []
        for band in _bands(hashes, varying, bits):
            order = np.argsort(band, kind="stable")
            groups = np.split(order, np.flatnonzero(np.diff(band[order])) + 1)
            found += [group[_spanning_links(hashes[group], bits, banded=True)] for group in groups if len(group) > 1]
        return _concatenated(found)
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
    return _concatenated(links)


def _concatenated(links: Sequence[Links]) -> Links:
    return np.concatenate([NO_LINKS, *links])
