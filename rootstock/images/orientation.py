"""How a camera was held: the one reading of EXIF and XMP that every decoder here obeys.

Libraries differ (a doubled header, a broken block, a number out of range), and two that differ show two pictures.
"""

import re
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TAG = 0x0112  # of EXIF and TIFF
UPRIGHT, LYING = 1, (5, 6, 7, 8)  # values; of those that lie, width and height change places
EXIF = b"Exif\0\0"
FORMATS = {1: "B", 3: "H", 4: "I"}  # types of an entry that can hold it
XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']\s*|>\s*)(\d+)")
T = Image.Transpose
TURNS = {
    2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_270, 7: T.TRANSVERSE,
    8: T.ROTATE_90,
}  # fmt: skip


def read(exif: bytes, xmp: bytes = b"") -> int:
    """Read the orientation, 1 to 8; EXIF counts before XMP, and what is broken or out of range is 1.

    Args:
        exif: the block, with or without headers before it; may be empty.
        xmp: the packet; may be empty.
    """
    found = _from_exif(exif)
    if found is None and (said := XMP.search(xmp)):
        found = int(said[1][:3])
    return known(found)


def known(said: int | None) -> int:
    """Take what says nothing, or nothing that there is, for upright."""
    return said if said in TURNS else UPRIGHT


def _from_exif(block: bytes) -> int | None:
    while block.startswith(EXIF):  # some phones write it twice
        block = block[len(EXIF) :]
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return None
    at: int = struct.unpack_from(f"{order}I", block, 4)[0]
    entries = block[at + 2 :]
    count = struct.unpack_from(f"{order}H", block, at)[0] if at + 2 <= len(block) else 0
    for start in range(0, min(12 * count, len(entries) - 11), 12):
        tag, kind = struct.unpack_from(f"{order}HH", entries, start)
        if tag == TAG and kind in FORMATS:
            return int(struct.unpack_from(f"{order}{FORMATS[kind]}", entries, start + 8)[0])
    return None


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image as it was seen."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def upright_pixels(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn an array whose last two axes are rows and columns, as `upright` turns an image; a view."""
    if orientation in LYING:
        pixels = pixels.swapaxes(-1, -2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[..., ::-1, :]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[..., ::-1]
    return pixels
