"""Which images look alike: a 64-bit perceptual hash of each, and links between those that differ in a few bits."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Links = NDArray[np.int64]
HASH_BITS = 64
SIDE = 32  # pixels that pHash looks at, each way
LOW = 8  # of their frequencies, each way, it keeps


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Give what the perceptual hash of an image is of: (32, 32) uint8, grey."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def perceptual_hashes(thumbnails: Sequence[NDArray[np.uint8]]) -> list[int]:
    """Hash how images look: pHash (Krawetz 2011), which of the low frequencies are above their median.

    Bit for bit what the package imagehash gives (tested), but for many at once: alone, the hash of a small file took a
    quarter of the time that ingest needs to look at it, much of it in Python.

    Args:
        thumbnails: n of (32, 32) uint8.
    """
    if not len(thumbnails):
        return []
    from scipy.fftpack import dct  # an ingest with nothing new does without

    spectra = dct(dct(np.stack(thumbnails), axis=1), axis=2)[:, :LOW, :LOW].reshape(-1, HASH_BITS)
    bits = np.packbits(spectra > np.median(spectra, axis=1, keepdims=True), axis=1)
    return [int.from_bytes(row.tobytes(), "big") for row in bits]


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
