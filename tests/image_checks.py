"""Check an image file as ingest does, and compare the pixels that it shows."""

import struct

import numpy as np
import pytest
from PIL import Image

from rootstock.images import inspection, pixels
from rootstock.images.inspection import Checks, Reason, Rejected
from tests.image_writers import chunk

CHECKS = Checks(min_side=8, max_megapixels=100, max_side=None, accept_wrong_extension=False)


def pixels_of(data: bytes) -> np.ndarray:
    image = pixels.decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def check(data: bytes, path: str, **changes) -> inspection.NewImage:
    return inspection.check(
        data, path, Checks(**{name: changes.get(name, getattr(CHECKS, name)) for name in CHECKS.__slots__})
    )


def why_not(data: bytes, path: str, **changes) -> Reason:
    with pytest.raises(Rejected) as rejected:
        check(data, path, **changes)
    return rejected.value.reason


def assert_alike(one: np.ndarray, other: np.ndarray | Image.Image, tolerance: float) -> None:
    """Check the mean difference per pixel of two images against a tolerance (of 255)."""
    assert np.abs(one - np.asarray(other).astype(int)).mean() <= tolerance


def png_by_hand(width: int, height: int, bits: int, colour_type: int, compressed: bytes) -> bytes:
    """Write a PNG that Pillow cannot write, chunk by chunk."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")
