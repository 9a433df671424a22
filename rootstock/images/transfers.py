"""What a broken copy does to a file: holes where the disk had the place alone, and line ends changed on the way."""

import re

import numpy as np

LEAST_HOLE = 128  # bytes; no compressor of TIFF's writes so many that are alike, which it would have packed
LEAST_BYTES = 2**13  # of which no byte would be missing by chance
LEAST_PAIRS = 24  # of carriage return and line feed that are to be expected: then not one is no chance
DENSE = 0.6  # of the pairs of bytes that random ones of that length have; photos: 0.7 to 1, patterns: up to 0.2
CR, LF, LONE_FEED = b"\r", b"\n", re.compile(rb"(?<!\r)\n")


def hole(packed: bytes) -> str:
    """Say whether what LZW, LZMA or Zstandard have packed has a hole; nothing where it has none."""
    holes = {"a hole of zeros": b"\0", "a hole of ones": b"\xff"}
    return next((said for said, byte in holes.items() if byte * LEAST_HOLE in packed), "")


def as_text(data: bytes, start: int = 0) -> str:
    """Say whether a file was transferred as text, by its compressed bytes from `start` on; nothing where it was not.

    Then each line feed follows a carriage return, or one of the two does not occur, or never both in turn.
    """
    if data.find(CR + LF, start) >= 0 and LONE_FEED.search(data, start):
        return ""  # as of nearly all files, which is soon found
    size = len(data) - start
    feeds, returns, pairs = (data.count(mark, start) for mark in (LF, CR, CR + LF))
    changed = pairs == feeds or not returns or (not pairs and feeds * returns >= LEAST_PAIRS * size)
    if size < LEAST_BYTES or not changed or not _is_dense(data, start):
        return ""
    return "its line ends were changed, as by a transfer as text"


def _is_dense(data: bytes, start: int) -> bool:
    """Whether bytes are as varied as those of a compressed photo, so that what does not occur says something."""
    values = np.frombuffer(data, np.uint8, offset=start).astype(np.uint16)
    pairs = np.count_nonzero(np.bincount(values[:-1] << 8 | values[1:], minlength=2**16))
    return bool(pairs >= DENSE * 2**16 * -np.expm1(-len(values) / 2**16))
