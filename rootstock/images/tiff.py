"""TIFF files: reads the first directory and decides whether Pillow decodes the file correctly.

Other files are decoded by tiff_values.py; tiff_pieces.py checks for damage.
"""

import struct
from dataclasses import dataclass

import numpy as np

from rootstock.images import orientation
from rootstock.images.reasons import Reason, Rejected

MOST_PIECES = 2**20  # strips or tiles; 100 megapixels with one row per strip have some 10,000
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, OFFSETS, SAMPLES = 256, 257, 258, 259, 262, 266, 273, 277
MOST_ENTRIES = 2**16
TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
INTEGERS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 16: "u8"}
ROWS, SIZES, PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES = (
    278,
    279,
    284,
    317,
    322,
    323,
    324,
    325,
)
EXTRA, FORMAT, SUBSAMPLING, ORIENTATION = 338, 339, 530, 274
XMP, JPEG_TABLES = 700, 347
RAW, LZW, PACKBITS, LZMA, ZSTANDARD, DEFLATE, FAXES = 1, 5, 32773, 34925, 50000, (8, 32946), (2, 3, 4)
OLD_JPEG, JPEG = 6, 7
JPEGS, LOSSLESS = (OLD_JPEG, JPEG), (LZW, *DEFLATE, PACKBITS, LZMA, ZSTANDARD)
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # by photometric interpretation
LAYOUTS = {0: "L", 1: "L", 2: "RGB", 5: "CMYK"}


@dataclass(frozen=True)
class Directory:
    """The first directory; `bits` and `format` apply to every sample."""

    order: str  # <, >
    big: bool  # BigTIFF
    width: int
    height: int
    bits: int
    format: int
    samples: int
    photometric: int
    compression: int
    planar: int
    predictor: int
    extra: tuple[int, ...]
    fill_order: int
    orientation: int  # 1 to 8
    subsampled: bool
    tiled: bool
    piece: tuple[int, int]  # width and height of a strip or tile; the last strip may be short
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    jpeg_tables: bytes  # shared by the JPEGs in the strips or tiles

    @property
    def is_deep(self) -> bool:
        """Whether tiff_values.py decodes it: samples other than unsigned 8-bit, or a layout that Pillow gets wrong.

        Pillow supports no alpha with CMYK, white-is-zero or premultiplied grey, none in a separate plane, and no
        big-endian BigTIFF.
        """
        if self.bits > 8 or self.format != 1:
            return True
        if self.bits < 8 or self.photometric not in LAYOUTS or self.compression not in (RAW, *LOSSLESS):
            return False
        more = self.samples - COLOURS[self.photometric]
        known = self.photometric == 2 or (self.photometric == 1 and self.extra != (1,))
        return (self.big and self.order == ">") or more > 1 or (more == 1 and not (known and self.planar == 1))

    @property
    def planes(self) -> int:
        """Return the number of planes."""
        return self.samples if self.planar == 2 else 1

    @property
    def row_bytes(self) -> int:
        """Return the bytes per row of an uncompressed strip or tile."""
        return -(-self.piece[0] * (self.samples // self.planes) * self.bits // 8)

    def rows(self, number: int) -> int:
        """Return the number of rows of a strip or tile; the last strip of a plane may be short."""
        if self.tiled:
            return self.piece[1]
        number %= -(-self.height // self.piece[1])
        return min(self.piece[1], self.height - number * self.piece[1])

    @property
    def ends(self) -> int:
        """Return the offset at which the last strip or tile ends."""
        return max((at + size for at, size in zip(self.offsets, self.sizes, strict=False)), default=0)


def read(data: bytes) -> Directory:
    """Read the first directory.

    Raises:
        Rejected: it is invalid or too large, or samples differ in bits or format.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    tags = _entries(data, order, big=big)
    for tag in (OFFSETS, SIZES, TILE_OFFSETS, TILE_SIZES):
        if tag in tags and tags[tag][1] > MOST_PIECES:
            raise Rejected(Reason.TOO_COSTLY, f"more than {MOST_PIECES:,} strips or tiles")

    def several(tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        kind, count, at = tags.get(tag, (0, 0, 0))
        if kind not in INTEGERS or not count:
            return default
        if at + count * np.dtype(INTEGERS[kind]).itemsize > len(data):
            raise Rejected(Reason.TRUNCATED)
        return tuple(np.frombuffer(data, order + INTEGERS[kind], count, at).tolist())

    def one(tag: int, default: int) -> int:
        return several(tag, (default,))[0]

    def content(tag: int) -> bytes:
        _, count, at = tags.get(tag, (0, 0, 0))
        return data[at : at + count]

    width, height = one(WIDTH, 0), one(HEIGHT, 0)
    photometric, compression = one(PHOTOMETRIC, 0), one(COMPRESSION, RAW)
    samples = one(SAMPLES, 3 if compression in JPEGS and photometric in (2, 6) else 1)
    bits, formats = set(several(BITS, (1,))[:samples]), set(several(FORMAT, (1,))[:samples])
    if len(bits) != 1 or len(formats) != 1:
        raise Rejected(Reason.UNSUPPORTED, "samples of a pixel differ in bits or format")
    tiles = TILE_OFFSETS in tags
    piece = (one(TILE_WIDTH, 0), one(TILE_HEIGHT, 0)) if tiles else (width, min(height, one(ROWS, height)))
    if min(width, height, samples, *piece) < 1:
        raise Rejected(Reason.UNDECODABLE, "no valid size in the directory")
    offsets, sizes = several(TILE_OFFSETS if tiles else OFFSETS, ()), several(TILE_SIZES if tiles else SIZES, ())
    turned = orientation.valid(one(ORIENTATION, 0)) if ORIENTATION in tags else orientation.read(b"", content(XMP))
    complete = max((at + size for at, size in zip(offsets, sizes, strict=False)), default=0) <= len(data)
    if complete and compression != RAW and sum(sizes) > 2 * len(data):  # overlapping pieces, each would be unpacked
        raise Rejected(Reason.TOO_COSTLY, "strips or tiles larger than the file")
    return Directory(
        order, big, width, height, bits.pop(), formats.pop(), samples, photometric, compression, one(PLANAR, 1),
        one(PREDICTOR, 1), several(EXTRA, ()), one(FILL_ORDER, 1), turned,
        several(SUBSAMPLING, (2, 2)) != (1, 1), tiles, piece, offsets, sizes,
        content(JPEG_TABLES),
    )  # fmt: skip


def _entries(data: bytes, order: str, *, big: bool) -> dict[int, tuple[int, int, int]]:
    """Return the entries of the first directory by tag: type, number of values, and their offset."""
    head, number, each, inline = (8, "Q", 20, 8) if big else (4, "I", 12, 4)
    if len(data) < 16:
        raise Rejected(Reason.TRUNCATED)
    at = struct.unpack_from(order + number, data, head)[0]
    if at + 8 > len(data):
        raise Rejected(Reason.TRUNCATED)
    entries = struct.unpack_from(order + ("Q" if big else "H"), data, at)[0]
    at += 8 if big else 2
    if entries > MOST_ENTRIES or at + entries * each > len(data):
        raise Rejected(Reason.TRUNCATED)
    found: dict[int, tuple[int, int, int]] = {}
    total = 0
    for start in range(at, at + entries * each, each):
        tag, kind, count = struct.unpack_from(f"{order}HH{number}", data, start)
        size = TYPE_BYTES.get(kind, 1) * count
        value = start + each - inline
        found.setdefault(
            tag, (kind, count, value if size <= inline else struct.unpack_from(order + number, data, value)[0])
        )
        total += size
    if total > 2 * len(data):  # Pillow would read them all, also overlapping ones
        raise Rejected(Reason.TOO_COSTLY, "a directory larger than the file")
    return found


def check_pillow(directory: Directory) -> None:
    """Reject files that Pillow would decode wrongly.

    Raises:
        Rejected: it is one of these.
    """
    if directory.photometric == 6 and directory.compression == RAW and directory.subsampled:
        raise Rejected(Reason.UNSUPPORTED, "uncompressed TIFF with subsampled YCbCr")
    if directory.compression not in (RAW, *JPEGS, *LOSSLESS, *FAXES):
        raise Rejected(Reason.UNSUPPORTED, f"TIFF with compression {directory.compression}")
    if directory.big and directory.order == ">":
        raise Rejected(Reason.UNSUPPORTED, "big-endian BigTIFF of this kind")
