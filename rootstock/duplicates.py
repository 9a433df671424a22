"""Which images look alike: a 64-bit perceptual hash of each, and links between those that differ in a few bits."""

from itertools import pairwise

import numpy as np
from imagehash import phash
from numpy.typing import NDArray
from PIL import Image

Links = NDArray[np.int64]
HASH_BITS = 64


def perceptual_hash(image: Image.Image) -> int:
    """Hash how an image looks (pHash: signs of the low frequencies of its 32x32 grey cosine transform)."""
    signs = phash(image).hash  # (8, 8) bool; as text, which imagehash offers, it takes as long as all the rest
    return int.from_bytes(np.packbits(signs).tobytes(), "big")


def near_links(hashes: NDArray[np.uint64], bits: int) -> Links:
    """Link the hashes that differ in at most `bits` bits; what is near hangs together, directly or by equals.

    Two hashes that differ in at most b bits are equal in at least one of b + 1 bands of bits (pigeonhole), so only
    those that share a band are compared: a million hashes take seconds, where all pairs would take hours. Equal
    hashes are linked to the first of them alone, so that a thousand blank pages make a thousand links.

    Args:
        hashes: (n,) uint64.
        bits: the largest Hamming distance that counts as near.

    Returns:
        (m, 2) int64 indices into `hashes`, sorted, the lower of a pair first.
    """
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    equal = np.stack([first[inverse], np.arange(len(hashes))], axis=1)
    links = [equal[equal[:, 0] != equal[:, 1]]]
    edges = np.linspace(0, HASH_BITS, bits + 2).astype(int)
    for low, high in pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1) if high - low < HASH_BITS else np.uint64(2**64 - 1)
        links.append(np.sort(first[_near_in_band(distinct, (distinct >> np.uint64(low)) & mask, bits)], axis=1))
    return np.unique(np.concatenate(links), axis=0)


def _near_in_band(hashes: NDArray[np.uint64], band: NDArray[np.uint64], bits: int) -> Links:
    """Compare each hash with those after it in its bucket, one shift of the sorted order at a time."""
    order = np.argsort(band, kind="stable")
    band, at = band[order], np.arange(len(order))
    found, shift = [np.empty((0, 2), np.int64)], 0
    while len(at):
        shift += 1
        at = at[at + shift < len(order)]
        at = at[band[at] == band[at + shift]]  # whoever left its bucket has no further neighbours there
        one, other = order[at], order[at + shift]
        near = np.bitwise_count(hashes[one] ^ hashes[other]) <= bits
        found.append(np.stack([one[near], other[near]], axis=1))
    return np.concatenate(found)
