"""Reads the orientation from EXIF and XMP, in one place for all decoders.

Libraries differ on doubled headers, broken blocks and values out of range, and would give different pictures.
"""

import re
import struct

from PIL import Image

TAG = 0x0112  # of EXIF and TIFF
UPRIGHT, LYING = 1, (5, 6, 7, 8)  # values; LYING ones swap width and height
EXIF = b"Exif\0\0"
FORMATS = {1: "B", 3: "H", 4: "I"}  # EXIF entry types that can hold the value
XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']\s*|>\s*)(\d+)")
T = Image.Transpose
TURNS = {
    2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_270, 7: T.TRANSVERSE,
    8: T.ROTATE_90,
}  # fmt: skip


def read(exif: bytes, xmp: bytes = b"") -> int:
    """Return the orientation, 1 to 8; EXIF takes precedence over XMP, broken or invalid values count as 1.

    Args:
        exif: the EXIF block, with or without headers; may be empty.
        xmp: the XMP packet; may be empty.
    """
    found = _from_exif(exif)
    if found is None and (match := XMP.search(xmp)):
        found = int(match[1][:3])
    return valid(found)


def valid(orientation: int | None) -> int:
    """Return an orientation if it is valid, else upright."""
    return orientation if orientation in TURNS else UPRIGHT


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
    """Apply an orientation to an image."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image
