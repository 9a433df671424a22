"""JPEG files: header (size, orientation, decoding cost), and damage found while decoding.

Pillow drops libjpeg's warnings and torchvision prints them; simplejpeg (the same libjpeg-turbo) raises them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rootstock.images import orientation
from rootstock.images.byte_counts import count_pair
from rootstock.images.reasons import Reason, Rejected

START = b"\xff\xd8\xff"
SCAN, DHT, SOS, EOI = 0, 0xC4, 0xDA, 0xD9  # SCAN stands for the compressed pixels after SOS
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
METADATA = (0xE1, 0xE2, 0xED, 0xFE)  # EXIF and XMP, profiles and further pictures, Photoshop, comments
ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment (standalone)
XMP = b"http://ns.adobe.com/xap/1.0/\0"
MOST_SEGMENTS = 20_000  # before the first scan; metadata of the largest photos take some hundreds
MOST_MARKERS = 10 * MOST_SEGMENTS  # after the first scan
LEAST_HOLE = 64  # bytes of zeros; each bit would be a third of a coefficient
UNSUPPORTED = re.compile(r"[uU]nsupported(?! marker)")  # in libjpeg's message
NO_PADDING = re.compile(rb"\xff+")
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in a scan: neither a stuffed byte nor a restart marker


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a JPEG; `width` and `height` are those of the stored pixels, before rotation."""

    width: int
    height: int
    components: int
    bits: int
    progressive: bool  # decoding keeps all coefficients until the last scan
    orientation: int
    scans_at: int
    metadata: tuple[tuple[int, int], ...]  # byte ranges of EXIF, XMP and profiles


def read(data: bytes) -> Header:
    """Read the header of a JPEG.

    Raises:
        Rejected: it has none, or contains more segments than any camera writes.
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
                exif += segment[6:]  # a long block is split over several segments
            elif segment.startswith(XMP):
                xmp += segment
        elif marker in FRAMES and frame is None and start + 6 <= len(data):
            height, width = (int.from_bytes(data[start + n : start + n + 2], "big") for n in (1, 3))
            frame = width, height, data[start + 5], data[start], marker in (0xC2, 0xC6, 0xCA, 0xCE)
    raise Rejected(Reason.TRUNCATED)


def _segments(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment's content, up to the EOI marker or the end of the file."""
    while (at := data.find(b"\xff", at)) >= 0:
        if data.startswith(b"\xff\xff", at):  # padding
            at = NO_PADDING.match(data, at).end() - 1  # type: ignore[union-attr]  # always matches
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
    """Return the file without metadata, about which Pillow warns if it is broken."""
    if not header.metadata:
        return data
    starts, ends = zip(*header.metadata, strict=True)
    return b"".join(data[end:start] for end, start in zip((0, *ends), (*starts, len(data)), strict=True))


def count_scans(data: bytes, header: Header, most: int) -> int:
    """Return the number of scans, each a pass over the whole image, up to `most`.

    Data after the EOI marker (a phone's second picture or film) are not counted.
    """
    marks = count_pair(data, b"\xff\xda", header.scans_at)
    if marks < most:
        return marks  # an upper bound: may include data after EOI
    found = 0
    for number, (marker, _, _) in enumerate(_segments(data, header.scans_at)):
        found += marker == SOS
        if found >= most or number > MOST_MARKERS:
            return most
    return found


def find_hole(data: bytes, header: Header) -> str:
    """Describe a run of zeros in a scan that no encoder wrote; "" if there is none.

    libjpeg decodes them as pixels, and warns only if their number does not fit. A genuine run of zeros is a flat area,
    where every block has the shortest code, all zeros; if a Huffman table gives that code another meaning, each block
    would be noise.
    """
    if data.find(bytes(LEAST_HOLE), header.scans_at) < 0:
        return ""
    zero_codes: dict[int, int] = {}  # class and number of a table -> symbol of the all-zeros code
    would_be_noise = False
    for marker, start, end in islice(_segments(data, 2), MOST_MARKERS):
        if marker == DHT:
            zero_codes |= _zero_codes(data[start:end])
        elif marker == SOS:
            # The low half of a symbol is the number of coefficient bits that follow the code.
            would_be_noise = any(zero_codes.get(table, 0) & 15 for table in _tables(data[start:end], header))
        elif marker == SCAN and would_be_noise and data.find(bytes(LEAST_HOLE), start, end) >= 0:
            return "a run of zeros inside the compressed data"
    return ""


def find_missing_scans(data: bytes, header: Header) -> str:
    """Describe that a progressive JPEG ends before its last scan, as one that was cut between two does; "" if not.

    libjpeg decodes what there is, blurred. The standard (T.81, G.1.1.1) wants every bit of every coefficient sent.
    """
    if not header.progressive:
        return ""
    lacking: dict[int, dict[int, int]] = {}  # component -> coefficient -> how many of its lowest bits are to come
    for marker, start, end in islice(_segments(data, 2), MOST_MARKERS):
        count = data[start] if marker == SOS else 0
        spectral = data[start + 1 + 2 * count : min(end, start + 4 + 2 * count)]
        if count and len(spectral) == 3:
            for component in data[start + 1 : start + 1 + 2 * count : 2]:
                sent = range(spectral[0], min(spectral[1], 63) + 1)
                lacking.setdefault(component, {}).update(dict.fromkeys(sent, spectral[2] & 15))
    whole = [len(coefficients) == 64 and not any(coefficients.values()) for coefficients in lacking.values()]
    return "" if len(whole) == header.components and all(whole) else "scans are missing"


def _zero_codes(tables: bytes) -> dict[int, int]:
    """Return the symbol of the first code, all zeros, of each Huffman table."""
    found, at = {}, 0
    while at + 17 < len(tables):
        found[tables[at]] = tables[at + 17]
        at += 17 + sum(tables[at + 1 : at + 17])
    return found


def _tables(scan: bytes, header: Header) -> list[int]:
    """Return the keys in `_zero_codes` of the Huffman tables that a scan uses; empty for a refinement scan."""
    count = scan[0] if scan else 0
    chosen, spectral = scan[2 : 1 + 2 * count : 2], scan[1 + 2 * count :]
    if len(spectral) < 3 or (header.progressive and spectral[2] >> 4):
        return []
    first = [table >> 4 for table in chosen] if spectral[0] == 0 or not header.progressive else []
    return first + [table & 15 | 16 for table in chosen if spectral[1] or not header.progressive]


def thumbnail(data: bytes, header: Header, side: int) -> NDArray[np.uint8]:
    """Decode to grey (h, w) uint8 at 1/8 of the size, or larger if a side would fall below `side`.

    The whole stream is read.

    Raises:
        ValueError: libjpeg's warning or error.
    """
    return _reduced(data, header, side, "GRAY")[..., 0]


def decode(data: bytes) -> NDArray[np.uint8]:
    """Decode a grey or RGB JPEG to (h, w, 3) uint8, as it is stored: the same bytes as by Pillow, without the GIL.

    Raises:
        ValueError: libjpeg's warning or error.
    """
    import simplejpeg  # not every process decodes

    found: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
    return found


def reduced(data: bytes, header: Header, side: int) -> NDArray[np.uint8]:
    """Decode a grey or RGB JPEG to (h, w, 3) uint8 at 1/8, 1/4 or 1/2 of its size, so that no side is below `side`.

    The same bytes as by Pillow's draft mode, without the GIL.

    Raises:
        ValueError: libjpeg's error.
    """
    return _reduced(data, header, side, "RGB", fastdct=False, fastupsample=False, strict=False)


def _reduced(data: bytes, header: Header, side: int, colours: str, **settings: bool) -> NDArray[np.uint8]:
    import simplejpeg

    scale = min(header.width // side, header.height // side)
    factor = next((factor for factor in (8, 4, 2) if scale >= factor), 1)  # as Pillow's draft mode does
    least = {"min_height": -(-header.height // factor), "min_width": -(-header.width // factor)}
    found: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colours, min_factor=1, **least, **settings)
    return found


def is_unsupported(message: str) -> bool:
    """Whether libjpeg's message means that it does not support this kind of JPEG, rather than damage."""
    return UNSUPPORTED.search(message) is not None


def check_cmyk(data: bytes) -> None:
    """Decode a CMYK JPEG only for libjpeg's warnings.

    Raises:
        ValueError: libjpeg's warning or error.
    """
    import simplejpeg

    simplejpeg.decode_jpeg(data, "CMYK", min_height=1, min_width=1, min_factor=1)


def warning(data: bytes, header: Header) -> str:
    """Return libjpeg's warning about a JPEG of one, three or four components; "" if there is none."""
    try:
        if header.components in (1, 3):
            thumbnail(data, header, 1)
        elif header.components == 4:
            check_cmyk(data)
    except ValueError as error:
        return str(error)
    return ""
