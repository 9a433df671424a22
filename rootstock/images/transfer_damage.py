"""Detects damage by a broken copy: blocks that were allocated but never written, and converted line ends."""

import numpy as np

from rootstock.images.byte_counts import count_byte, count_pair

LEAST_HOLE = 128  # bytes; no TIFF compressor writes so long a run, which it would have compressed
LEAST_BYTES = 2**13  # in which no byte value would be missing by chance
LEAST_PAIRS = 24  # expected CR LF pairs from which on finding none is no coincidence
DENSE = 0.6  # of the distinct byte pairs of random data; photos: 0.7 to 1, patterns: up to 0.2
CR, LF = b"\r", b"\n"


def find_hole(packed: bytes) -> str:
    """Describe a long run of equal bytes in LZW, LZMA or Zstandard data; "" if there is none."""
    holes = {"a run of zero bytes": b"\0", "a run of 0xFF bytes": b"\xff"}
    return next((hole for hole, byte in holes.items() if byte * LEAST_HOLE in packed), "")


def find_text_transfer(data: bytes, start: int = 0) -> str:
    """Describe converted line ends in the compressed bytes from `start` on; "" if there are none.

    After a transfer in text mode, every LF follows a CR, or one of the two or their pair never occurs.
    """
    size = len(data) - start
    feeds, pairs = count_byte(data, LF, start), count_pair(data, CR + LF, start)
    if feeds > pairs > 0:
        return ""  # true of nearly all intact files
    returns = count_byte(data, CR, start)
    changed = pairs == feeds or not returns or (not pairs and feeds * returns >= LEAST_PAIRS * size)
    if size < LEAST_BYTES or not changed or not _is_dense(data, start):
        return ""
    return "line ends were converted, as by a transfer in text mode"


def _is_dense(data: bytes, start: int) -> bool:
    """Whether bytes are as varied as those of a compressed photo, so that missing values are significant."""
    values = np.frombuffer(data, np.uint8, offset=start).astype(np.uint16)
    pairs = np.count_nonzero(np.bincount(values[:-1] << 8 | values[1:], minlength=2**16))
    return bool(pairs >= DENSE * 2**16 * -np.expm1(-len(values) / 2**16))
