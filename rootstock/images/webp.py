"""WebP files: size and orientation, read without the decoder, which allocates the canvas on opening a file."""

import struct
from collections.abc import Iterator

from rootstock.images import orientation
from rootstock.images.reasons import Reason, Rejected

MOST_CHUNKS = 2**16  # an hour of video has fewer frames
PIXELS, FRAME = (b"VP8 ", b"VP8L"), b"ANMF"  # chunks with a lossy or lossless image, or a frame
FRAME_HEADER_BYTES = 16


def read(data: bytes) -> tuple[tuple[int, int], int]:
    """Return (width, height) as stored, and the orientation.

    Raises:
        Rejected: there is no header, or there are more chunks than any program writes.
    """

    def number(at: int, bits: int, shift: int = 0) -> int:
        return int.from_bytes(data[at : at + 4], "little") >> shift & (1 << bits) - 1

    if len(data) < 30:
        raise Rejected(Reason.TRUNCATED)
    match data[12:16]:
        case b"VP8X":
            blocks = {name: data[start:end] for name, start, end in _chunks(data) if name in (b"EXIF", b"XMP ")}
            turned = orientation.read(blocks.get(b"EXIF", b""), blocks.get(b"XMP ", b""))
            return (number(24, 24) + 1, number(27, 24) + 1), turned
        case b"VP8 ":
            return (number(26, 14), number(28, 14)), orientation.UPRIGHT
        case b"VP8L":
            return (number(21, 14) + 1, number(21, 14, shift=14) + 1), orientation.UPRIGHT
    raise Rejected(Reason.UNDECODABLE, "no valid size in the header")


def first_image(data: bytes) -> bytes:
    """Return the compressed pixels of the image or first frame, without alpha, which may be uncompressed."""
    for name, start, end in _chunks(data):
        if name == FRAME:
            inside = _chunks(data[:end], start + FRAME_HEADER_BYTES)
            return next((data[first:last] for kind, first, last in inside if kind in PIXELS), b"")
        if name in PIXELS:
            return data[start:end]
    return b""


def _chunks(data: bytes, at: int = 12) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of each chunk's content from offset `at` on."""
    for _ in range(MOST_CHUNKS):
        if at + 8 > len(data):
            return
        name, size = struct.unpack_from("<4sI", data, at)
        yield name, at + 8, at + 8 + size
        at += 8 + size + size % 2
    raise Rejected(Reason.TOO_COSTLY, f"more than {MOST_CHUNKS:,} chunks")
