"""Counts bytes and pairs of bytes in a file by NumPy, which releases the GIL and is faster on large files."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

LARGE = 2**14  # bytes, from which NumPy is faster than bytes.count
BLOCK = 2**16  # bytes looked at together, which stay in the CPU's cache


def count_pair(data: bytes, pair: bytes, start: int = 0) -> int:
    """Return how often two bytes follow one another from `start` on; the pair's bytes differ."""
    if len(data) - start < LARGE:
        return data.count(pair, start)
    first, second = pair
    return sum(_count((block[:-1] == first) & (block[1:] == second)) for block in _blocks(data, start))


def count_byte(data: bytes, byte: bytes, start: int = 0) -> int:
    """Return how often a byte occurs from `start` on."""
    if len(data) - start < LARGE:
        return data.count(byte, start)
    values = np.frombuffer(data, np.uint8, offset=start)
    return sum(_count(values[at : at + BLOCK] == byte[0]) for at in range(0, len(values), BLOCK))


def _blocks(data: bytes, start: int) -> Iterator[NDArray[np.uint8]]:
    """Yield blocks that share their last byte with the next."""
    values = np.frombuffer(data, np.uint8, offset=start)
    for at in range(0, len(values) - 1, BLOCK):
        yield values[at : at + BLOCK + 1]


def _count(found: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(found))
