"""Find near duplicates: links between perceptual hashes that differ in only a few bits.

Two hashes that differ in at most b bits are equal in at least one of b + 1 bands of bits (pigeonhole), so only hashes
that share a band are compared: a million take seconds, where all pairs would take hours. Bits that are nearly the same
in all hashes (fixed cameras, scans, microscopy) tell nothing apart: they are dealt out evenly among the bands. Where a
band is still shared by many, they are divided by the bits that vary among these; or, where most are near to many more,
each connected group is found by a search that compares the reached hashes with those not yet reached.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from rootstock.images.perceptual_hash import HASH_BITS
from rootstock.system.parallel import ordered_map

Hashes = NDArray[np.uint64]
Links = NDArray[np.int64]
Places = NDArray[np.int32]  # half as large as NumPy's own indices: there are several for each of all images
NO_LINKS: Links = np.empty((0, 2), np.int64)
LARGE_BUCKET, MAX_DEPTH = 4096, 3  # hashes that are compared in pairs; divisions of a larger bucket
BLOCK = 65_536  # hashes per comparison: half a megabyte, which a core's cache holds
SAMPLE, DENSE = 64, 0.002  # hashes, and the share of others near to nearly each of them with which a search is faster
MAX_PAIRS = 64 * 100_000  # compared at once in a search: 60 MB
# Above these limits, only enough links to connect each group are kept; a million photos stay far below.
MAX_LINKS_PER_HASH, MAX_EXTRA_LINKS = 8, 10**6
MAX_COMPARED = 2 * 10**10  # pairs of a new and a known hash: half a minute; more new ones are linked from the start


@dataclass(frozen=True)
class KnownLinks:
    """The links of earlier hashes.

    Args:
        bits: maximum Hamming distance of near duplicates.
        hashes: (n,) distinct, sorted.
        links: (m, 2) indices into `hashes`.
    """

    bits: int
    hashes: Hashes
    links: Links


def near_links(hashes: Hashes, bits: int, known: KnownLinks | None = None) -> tuple[Links, KnownLinks]:
    """Link hashes that differ in at most `bits` bits.

    Equal hashes are linked only to the first of them, so that a thousand blank pages make a thousand links. In dense
    clusters (100,000 nearly equal hashes have more than 10 million links), only enough links are returned to connect
    them, directly or by way of others.

    Args:
        hashes: (n,) uint64.
        bits: maximum Hamming distance of near duplicates.
        known: what an earlier call returned. If its hashes are all here, only others are compared.

    Returns:
        (m, 2) int64 indices into `hashes`, sorted, the lower of a pair first; and what to pass to the next call.
    """
    order = np.argsort(hashes, kind="stable").astype(np.int32)  # half as large, as all of this is in memory at once
    distinct = hashes[order]
    is_first = np.ones(len(distinct), bool)
    is_first[1:] = distinct[1:] != distinct[:-1]
    again = np.flatnonzero(~is_first)
    distinct, starts = distinct[is_first], np.flatnonzero(is_first).astype(np.int32)
    equal = np.stack([order[starts[np.searchsorted(starts, again) - 1]], order[again]], axis=1).astype(np.int64)
    first = order[starts]
    del order, starts, is_first
    found = _links_of_distinct(distinct, bits, known)
    links = np.concatenate([equal, np.sort(first[found].astype(np.int64), axis=1)])
    return np.unique(links, axis=0), KnownLinks(bits, distinct, found)


def _links_of_distinct(hashes: Hashes, bits: int, known: KnownLinks | None) -> Links:
    """Link distinct, sorted hashes, by what is known of some of them."""
    if known is None or known.bits != bits or not len(known.hashes):
        return _all_links(hashes, bits)
    at = np.searchsorted(hashes, known.hashes)
    new = np.setdiff1d(np.arange(len(hashes)), at, assume_unique=True)
    is_here = len(hashes) > 0 and np.array_equal(hashes[np.minimum(at, len(hashes) - 1)], known.hashes)
    # A hash that is gone may have connected others: then nothing is known for certain.
    if not is_here or len(new) * len(hashes) > MAX_COMPARED:
        return _all_links(hashes, bits)
    links = _Links(len(hashes))
    links.add(at[known.links])
    for found in ordered_map(lambda one: _links_to(hashes, int(one), bits), new):
        links.add(found)
    return links.all()


def _links_to(hashes: Hashes, one: int, bits: int) -> Links:
    """Link one hash with all that it is near to."""
    blocks = range(0, len(hashes), BLOCK)
    near = [at + np.flatnonzero(_is_near(hashes[one], hashes[at : at + BLOCK], bits)) for at in blocks]
    others = np.concatenate(near)
    others = others[others != one]
    return np.stack([np.full_like(others, one), others], axis=1)


def _all_links(hashes: Hashes, bits: int) -> Links:
    """Link distinct hashes."""
    links = _Links(len(hashes))
    waiting = [(np.arange(len(hashes), dtype=np.int32), 0)]
    while waiting:
        group, depth = waiting.pop()
        if len(group) > LARGE_BUCKET and (depth > MAX_DEPTH or _is_dense(hashes[group], bits)):
            links.add(group[_spanning_links(hashes[group], bits)])
            continue
        own = hashes if len(group) == len(hashes) else hashes[group]  # all are in order, as the sort is stable
        for places in _bands(own, bits):
            order, starts = _buckets(own, places)
            sizes = np.diff(starts)
            large = np.flatnonzero(sizes > LARGE_BUCKET)
            waiting += [(group[order[starts[at] : starts[at + 1]]], depth + 1) for at in large]
            _link_buckets(hashes, group[order], starts, bits, links)
    return links.all()


def _is_dense(hashes: Hashes, bits: int) -> bool:
    """Tell by a sample whether nearly all hashes are near to so many that a search soon reaches them."""
    sample = hashes[:: max(1, len(hashes) // SAMPLE)][:SAMPLE]
    shares = [np.count_nonzero(_is_near(one, hashes, bits)) / len(hashes) for one in sample]
    return bool(np.quantile(shares, 0.1) > DENSE)


def _bands(hashes: Hashes, bits: int) -> list[NDArray[np.uint64]]:
    """Return the bits of each of `bits` + 1 bands: all bits, dealt out by how evenly they divide these hashes."""
    places = np.arange(HASH_BITS, dtype=np.uint64)
    ones = np.array([np.count_nonzero(hashes & (np.uint64(1) << place)) for place in places])
    most_even_first = places[np.argsort(-np.minimum(ones, len(hashes) - ones), kind="stable")]
    return [most_even_first[number :: bits + 1] for number in range(bits + 1)]


def _buckets(hashes: Hashes, places: NDArray[np.uint64]) -> tuple[Places, Places]:
    """Put hashes that are equal in some bits into a bucket.

    Args:
        hashes: (n,).
        places: of these bits.

    Returns:
        The hashes' indices, bucket after bucket (n,), and where each bucket begins, and the last one ends (m + 1,).
    """
    band = np.zeros(len(hashes), np.min_scalar_type(2 ** len(places) - 1))  # NumPy sorts 16 bits by radix
    for place, bit in enumerate(places):
        one = hashes >> bit
        one &= np.uint64(1)
        band |= one.astype(band.dtype) << band.dtype.type(place)
    order = np.argsort(band, kind="stable").astype(np.int32)
    band = band[order]
    is_first = np.ones(len(band) + 1, bool)
    is_first[1:-1] = band[1:] != band[:-1]
    return order, np.flatnonzero(is_first).astype(np.int32)


def _link_buckets(hashes: Hashes, members: Places, starts: Places, bits: int, links: "_Links") -> None:
    """Compare each hash with those after it in its bucket, on all cores, but for large buckets.

    Args:
        hashes: (n,).
        members: indices into `hashes`, bucket after bucket.
        starts: where each bucket begins, and the last one ends (m + 1,).
        bits: maximum Hamming distance of near duplicates.
        links: receives those that are found.
    """
    blocks = np.unique(np.searchsorted(starts, range(0, len(members) + BLOCK, BLOCK)).clip(max=len(starts) - 1))

    def compare(block: tuple[int, int]) -> Places:
        begins = starts[slice(*block)]
        sizes = np.diff(starts[block[0] : block[1] + 1])
        chosen = np.flatnonzero((sizes > 1) & (sizes <= LARGE_BUCKET))
        chosen = chosen[np.argsort(-sizes[chosen], kind="stable")]
        begins, sizes = begins[chosen], sizes[chosen]
        ends = np.cumsum(sizes, dtype=np.int32)
        own = members[np.arange(sizes.sum()) + np.repeat(begins - ends + sizes, sizes)]
        pairs: Places = own[_pairs(hashes[own], np.repeat(sizes, sizes), np.repeat(ends, sizes), bits)]
        return pairs

    for found in ordered_map(compare, pairwise(blocks.tolist())):
        links.add(found)


def _pairs(hashes: Hashes, sizes: Places, ends: Places, bits: int) -> Links:
    """Link the near pairs of a block of buckets, the largest first, one shift at a time.

    Args:
        hashes: (n,), bucket after bucket.
        sizes: the size of each one's bucket.
        ends: where each one's bucket ends.
        bits: maximum Hamming distance of near duplicates.

    Returns:
        (m, 2) indices into `hashes`.
    """
    links = _Links(len(hashes))
    for shift in range(1, int(sizes.max(initial=0))):
        count = int(np.searchsorted(-sizes, -shift))  # hashes in buckets larger than the shift
        near = np.flatnonzero(_is_near(hashes[: count - shift], hashes[shift:count], bits))
        near = near[near + shift < ends[near]]
        links.add(np.stack([near, near + shift], axis=1))
    return links.all()


def _is_near(one: np.uint64 | Hashes, other: Hashes, bits: int) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = np.bitwise_count(one ^ other) <= bits
    return near


def _spanning_links(hashes: Hashes, bits: int) -> Links:
    """Link each connected group by a spanning tree, comparing reached hashes only with unreached ones."""
    left, links = np.arange(len(hashes)), [NO_LINKS]
    while len(left):
        reached, left = left[:1], left[1:]
        while len(reached) and len(left):
            pivots = max(1, MAX_PAIRS // len(left))
            some, reached = reached[:pivots], reached[pivots:]
            near = _is_near(hashes[some][:, None], hashes[left], bits)
            hit = near.any(axis=0)
            if hit.any():
                links.append(np.stack([some[near[:, hit].argmax(axis=0)], left[hit]], axis=1))
                reached, left = np.concatenate([reached, left[hit]]), left[~hit]
    return np.concatenate(links)


@dataclass
class _Links:
    """Links between n nodes; of too many, only enough to connect what they connect are kept."""

    nodes: int
    kept: list[Links] = field(default_factory=lambda: [NO_LINKS])
    count: int = 0
    component: NDArray[np.int32] | None = None  # of each node, once links have been dropped

    def add(self, links: NDArray[np.integer]) -> None:
        """Add links."""
        if self.component is not None:
            links = links[self.component[links[:, 0]] != self.component[links[:, 1]]]
        self.kept.append(links.astype(np.int64, copy=False))
        self.count += len(links)
        most = MAX_LINKS_PER_HASH * self.nodes + MAX_EXTRA_LINKS
        if self.count > most:
            self.count = len(self.all())  # a pair may share several bands
            if 2 * self.count > most:
                self._reduce()

    def all(self) -> Links:
        """Return the links that are kept, each once, sorted."""
        self.kept = [np.unique(np.sort(np.concatenate(self.kept), axis=1), axis=0)]
        return self.kept[0]

    def _reduce(self) -> None:
        """Drop all but a spanning forest."""
        one, other = self.all().T
        graph = coo_array((np.ones(len(one)), (one, other)), shape=(self.nodes, self.nodes))
        tree = minimum_spanning_tree(graph).tocoo()
        self.kept = [np.stack([tree.row, tree.col], axis=1).astype(np.int64)]
        self.count = len(self.kept[0])
        self.component = connected_components(tree, directed=False)[1]
