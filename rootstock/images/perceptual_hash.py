"""How an image looks, in 64 bits: images that look alike have hashes that differ in a few."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
