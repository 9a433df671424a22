"""What a JPEG says of itself before a pixel is decoded: size, how it was held, and what decoding it will cost.

And what libjpeg says when it is decoded: Pillow keeps its warnings to itself, torchvision prints them, so the check at
ingest decodes by simplejpeg (the same libjpeg-turbo), which raises them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rootstock.images import orientation
from rootstock.images.reasons import Reason, Rejected

START = b"\xff\xd8\xff"
SCAN, DHT, SOS, EOI = 0, 0xC4, 0xDA, 0xD9  # the first stands for the packed pixels behind SOS
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
METADATA = (0xE1, 0xE2, 0xED, 0xFE)  # EXIF and XMP, profiles and further pictures, Photoshop's, comments
ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
XMP = b"http://ns.adobe.com/xap/1.0/\0"
MOST_SEGMENTS = 20_000  # before the first scan; the metadata of the largest photos take some hundreds
MOST_MARKERS = 10 * MOST_SEGMENTS  # behind it
LEAST_HOLE = 64  # bytes of zeros, each bit of which would be a third of a coefficient
NO_KIND = re.compile(r"[uU]nsupported(?! marker)")  # in libjpeg's words
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
    exif, xmp = b"", b""
    metadata: list[tuple[int, int]] = []
    frame: tuple[int, int, int, int, bool] | None = None
    for number, (marker, start, end) in enumerate(_segments(data, 2)):
        if number == MOST_SEGMENTS:
            raise Rejected(Reason.TOO_COSTLY, f"more than {MOST_SEGMENTS:,} segments before the first scan")
        if marker in (SOS, EOI):
            if frame is None or marker == EOI:
                raise Rejected(Reason.UNDECODABLE)
            return Header(*frame, orientation.read(exif, xmp), start - 4, tuple(metadata))
        if marker in METADATA:
            metadata.append((start - 4, end))
        if marker == 0xE1:
            segment = data[start:end]
            if segment.startswith(orientation.EXIF):
                exif += segment[6:]  # a long block is continued
            elif segment.startswith(XMP):
                xmp += segment
        elif marker in FRAMES and frame is None and start + 6 <= len(data):
            height, width = (int.from_bytes(data[start + n : start + n + 2], "big") for n in (1, 3))
            frame = width, height, data[start + 5], data[start], marker in (0xC2, 0xC6, 0xCA, 0xCE)
    raise Rejected(Reason.TRUNCATED)


def _segments(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of the content of each segment, up to the end mark or the end of the file."""
    while (at := data.find(b"\xff", at)) >= 0:
        if data.startswith(b"\xff\xff", at):  # padding
            at = NO_PADDING.match(data, at).end() - 1  # type: ignore[union-attr]  # it matches
        if at + 4 > len(data):
            return
        marker = data[at + 1]
        if marker in ALONE or marker == 0:
            at += 2
            yield 0x01, at, at
            continue
        start, at = at + 4, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, start, at
        if marker == EOI:
            return
        if marker == SOS:
            mark = MARKER.search(data, at)
            yield SCAN, at, (at := mark.start() if mark else len(data))


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
    found = 0
    for number, (marker, _, _) in enumerate(_segments(data, header.scans_at)):
        found += marker == SOS
        if found >= most or number > MOST_MARKERS:
            return most
    return found


def hole(data: bytes, header: Header) -> str:
    """Say whether there are zeros in a scan that no encoder wrote; nothing where there are none.

    libjpeg takes them for pixels, and warns only if they are too many or too few of these. In a picture they stand
    for a flat area, of which every block has the shortest code that there is, all zeros: where a Huffman table gives
    that to something else, each block would be noise.
    """
    if data.find(bytes(LEAST_HOLE), header.scans_at) < 0:
        return ""
    zero_codes: dict[int, int] = {}  # class and number of a table -> what the code of zeros stands for
    would_be_noise = False
    for marker, start, end in islice(_segments(data, 2), MOST_MARKERS):
        if marker == DHT:
            zero_codes |= _zero_codes(data[start:end])
        elif marker == SOS:
            # The low half is how many bits of a coefficient follow the code.
            would_be_noise = any(zero_codes.get(table, 0) & 15 for table in _tables(data[start:end], header))
        elif marker == SCAN and would_be_noise and data.find(bytes(LEAST_HOLE), start, end) >= 0:
            return "a hole of zeros"
    return ""


def _zero_codes(tables: bytes) -> dict[int, int]:
    """Read of each Huffman table what its first code, all zeros, stands for."""
    found, at = {}, 0
    while at + 17 < len(tables):
        found[tables[at]] = tables[at + 17]
        at += 17 + sum(tables[at + 1 : at + 17])
    return found


def _tables(scan: bytes, header: Header) -> list[int]:
    """Name the Huffman tables that a scan uses, as `_zero_codes` does; none where it refines, bit by bit."""
    count = scan[0] if scan else 0
    chosen, says = scan[2 : 1 + 2 * count : 2], scan[1 + 2 * count :]
    if len(says) < 3 or (header.whole_first and says[2] >> 4):
        return []
    first = [table >> 4 for table in chosen] if says[0] == 0 or not header.whole_first else []
    return first + [table & 15 | 16 for table in chosen if says[1] or not header.whole_first]


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


def is_unknown(said: str) -> bool:
    """Whether libjpeg says that it does not know a kind of JPEG, which is not that something is wrong."""
    return NO_KIND.search(said) is not None


def check(data: bytes) -> None:
    """Decode a JPEG in four inks for libjpeg's warnings alone.

    Raises:
        ValueError: in libjpeg's words.
    """
    import simplejpeg

    simplejpeg.decode_jpeg(data, "CMYK", min_height=1, min_width=1, min_factor=1)


def warning(data: bytes, header: Header) -> str:
    """Decode a JPEG of one, three or four components for what libjpeg says is wrong; nothing where all is well."""
    try:
        if header.components in (1, 3):
            thumbnail(data, header, 1)
        elif header.components == 4:
            check(data)
    except ValueError as error:
        return str(error)
    return ""
