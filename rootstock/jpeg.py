"""What a JPEG says of itself before a pixel is decoded: size, how it was held, and what decoding it will cost.

And what libjpeg says when it is decoded: Pillow keeps its warnings to itself, torchvision prints them, so the check at
ingest decodes by simplejpeg (the same libjpeg-turbo), which raises them.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rootstock import orientation
from rootstock.reasons import Reason, Rejected

START = b"\xff\xd8\xff"
SOS, EOI = 0xDA, 0xD9
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
METADATA = (0xE1, 0xE2, 0xED, 0xFE)  # EXIF and XMP, profiles and further pictures, Photoshop's, comments
ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
XMP = b"http://ns.adobe.com/xap/1.0/\0"
MOST_SEGMENTS = 20_000  # before the first scan; the metadata of the largest photos take some hundreds
NO_PADDING = re.compile(rb"\xff+")
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in a scan: what is neither a byte nor a restart


@dataclass(frozen=True, slots=True)
class Header:
    """What is known before a pixel is decoded; `width` and `height` are of the pixels as they are stored."""

    width: int
    height: int
    components: int
    bits: int
    whole_first: bool  # all coefficients are kept until the last scan: progressive
    orientation: int
    scans_at: int
    metadata: tuple[tuple[int, int], ...]  # where EXIF, XMP and profiles lie


def read(data: bytes) -> Header:
    """Read the header of a JPEG.

    Raises:
        Rejected: it has none, or holds more segments than any camera writes.
    """
    at, exif, xmp = 2, b"", b""
    metadata: list[tuple[int, int]] = []
    frame: tuple[int, int, int, int, bool] | None = None
    for _ in range(MOST_SEGMENTS):
        at = data.find(b"\xff", at)
        if at < 0:
            raise Rejected(Reason.TRUNCATED)
        if data.startswith(b"\xff\xff", at):  # padding
            at = NO_PADDING.match(data, at).end() - 1  # type: ignore[union-attr]  # it matches
        if at + 4 > len(data):
            raise Rejected(Reason.TRUNCATED)
        marker = data[at + 1]
        if marker in ALONE or marker == 0:
            at += 2
            continue
        if marker in (SOS, EOI):
            if frame is None or marker == EOI:
                raise Rejected(Reason.UNDECODABLE)
            return Header(*frame, orientation.read(exif, xmp), at, tuple(metadata))
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in METADATA:
            metadata.append((at, end))
        if marker == 0xE1:
            segment = data[at + 4 : end]
            if segment.startswith(orientation.EXIF):
                exif += segment[6:]  # a long block is continued
            elif segment.startswith(XMP):
                xmp += segment
        elif marker in FRAMES and frame is None and at + 10 <= len(data):
            height, width = (int.from_bytes(data[at + n : at + n + 2], "big") for n in (5, 7))
            frame = width, height, data[at + 9], data[at + 4], marker in (0xC2, 0xC6, 0xCA, 0xCE)
        at = end
    raise Rejected(Reason.TOO_COSTLY, f"more than {MOST_SEGMENTS:,} segments before the first scan")


def without_metadata(data: bytes, header: Header) -> bytes:
    """Leave out what shows nothing: Pillow warns of it where it is broken."""
    if not header.metadata:
        return data
    starts, ends = zip(*header.metadata, strict=True)
    return b"".join(data[end:start] for end, start in zip((0, *ends), (*starts, len(data)), strict=True))


def scans(data: bytes, header: Header, most: int) -> int:
    """Count the scans, each of which goes over the whole image; `most` or more is as good as that.

    What follows the end mark (a phone's second picture, a film) is not counted.
    """
    if data.count(b"\xff\xda", header.scans_at) < most:
        return data.count(b"\xff\xda", header.scans_at)  # perhaps of what follows as well
    at, found = header.scans_at, 0
    while found < most and 0 <= at < len(data) - 3:
        if data[at + 1] == EOI:
            break
        found += data[at + 1] == SOS
        if data[at + 1] not in ALONE:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        mark = MARKER.search(data, at)
        at = mark.start() if mark else -1
    return found


def thumbnail(data: bytes, header: Header, side: int) -> NDArray[np.uint8]:
    """Decode at an eighth of its size, or at more of it where sides would fall below `side`: (h, w) uint8, grey.

    The whole stream is read, and held to what libjpeg warns of.

    Raises:
        ValueError: in libjpeg's words.
    """
    import simplejpeg  # only where there is a new JPEG

    scale = min(header.width // side, header.height // side)
    factor = next((factor for factor in (8, 4, 2) if scale >= factor), 1)  # as Pillow's draft
    least = {"min_height": -(-header.height // factor), "min_width": -(-header.width // factor)}
    grey: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "GRAY", min_factor=1, **least)[..., 0]
    return grey


def check(data: bytes) -> None:
    """Decode a JPEG in four inks for libjpeg's warnings alone.

    Raises:
        ValueError: in libjpeg's words.
    """
    import simplejpeg

    simplejpeg.decode_jpeg(data, "CMYK", min_height=1, min_width=1, min_factor=1)
