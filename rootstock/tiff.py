"""TIFF files: what their directory says, and the values of those that Pillow opens as something else than they are.

Pillow (13) inverts no 16-bit image whose white is zero, takes signed bytes for unsigned, keeps eight of sixteen bits
of colour, and garbles them where they lie in planes. Such files are read here: each strip or tile is unpacked by
libtiff, as bytes of which nothing is made, and put together by what the directory says of them.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rootstock import orientation
from rootstock.deep import Block, Deep
from rootstock.reasons import Reason, Rejected

MOST_PIECES = 2**20  # strips or tiles; of 100 megapixels, a row a strip, there are some 10,000
TOGETHER_BYTES = 2**22  # of unpacked pieces at a time
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
WHOLE = (8, 16, 32, 64)  # bits of a type of its own
FORMATS = {1: "uint", 2: "int", 3: "float"}
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # by photometric interpretation
LAYOUTS = {0: "L", 1: "L", 2: "RGB", 5: "CMYK"}


@dataclass(frozen=True)
class Directory:
    """What the first directory says; `bits` and `format` are those of every sample."""

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
    jpeg_tables: bytes  # what the JPEGs in the pieces have in common

    @property
    def is_deep(self) -> bool:
        """Whether it is read here: other values than unsigned ones of up to eight bits, or samples Pillow cannot place.

        Pillow knows no alpha beside inks or where white is zero, none in a plane of its own, and none in premultiplied
        grey; nor does it open a BigTIFF whose numbers begin with the highest byte.
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
        """Count the planes that samples are kept in."""
        return self.samples if self.planar == 2 else 1

    @property
    def row_bytes(self) -> int:
        """Say how many bytes a row of a piece has when it is unpacked."""
        return -(-self.piece[0] * (self.samples // self.planes) * self.bits // 8)

    def rows(self, number: int) -> int:
        """Count the rows of a strip or tile; the last strip of a plane may be short."""
        if self.tiled:
            return self.piece[1]
        number %= -(-self.height // self.piece[1])
        return min(self.piece[1], self.height - number * self.piece[1])

    @property
    def ends(self) -> int:
        """Say where the last piece ends."""
        return max((at + size for at, size in zip(self.offsets, self.sizes, strict=False)), default=0)


def read(data: bytes) -> Directory:
    """Read the first directory.

    Raises:
        Rejected: there is none that can be read, samples differ in bits or format, or it holds too much.
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
        raise Rejected(Reason.UNSUPPORTED, "samples of one pixel that differ in bits or format")
    tiles = TILE_OFFSETS in tags
    piece = (one(TILE_WIDTH, 0), one(TILE_HEIGHT, 0)) if tiles else (width, min(height, one(ROWS, height)))
    if min(width, height, samples, *piece) < 1:
        raise Rejected(Reason.UNDECODABLE, "no size")
    offsets, sizes = several(TILE_OFFSETS if tiles else OFFSETS, ()), several(TILE_SIZES if tiles else SIZES, ())
    held = orientation.known(one(ORIENTATION, 0)) if ORIENTATION in tags else orientation.read(b"", content(XMP))
    if compression != RAW and sum(sizes) > 2 * len(data):  # each is unpacked, also where many lie at one place
        raise Rejected(Reason.TOO_COSTLY, "strips or tiles of more than the file holds")
    return Directory(
        order, big, width, height, bits.pop(), formats.pop(), samples, photometric, compression, one(PLANAR, 1),
        one(PREDICTOR, 1), several(EXTRA, ()), one(FILL_ORDER, 1), held,
        several(SUBSAMPLING, (2, 2)) != (1, 1), tiles, piece, offsets, sizes,
        content(JPEG_TABLES),
    )  # fmt: skip


def _entries(data: bytes, order: str, *, big: bool) -> dict[int, tuple[int, int, int]]:
    """Read the entries of the first directory: by tag, the type, how many values there are, and where."""
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
    if total > 2 * len(data):  # Pillow would read them all: many that lie at one place take more than there is
        raise Rejected(Reason.TOO_COSTLY, "a directory of more than the file holds")
    return found


def check_pillow(says: Directory) -> None:
    """Refuse what Pillow would open and garble.

    Raises:
        Rejected: it is such a file.
    """
    if says.photometric == 6 and says.compression == RAW and says.subsampled:
        raise Rejected(Reason.UNSUPPORTED, "a TIFF of YCbCr with fewer colours than pixels, not compressed")
    if says.compression not in (RAW, *JPEGS, *LOSSLESS, *FAXES):
        raise Rejected(Reason.UNSUPPORTED, f"a TIFF of compression {says.compression}")
    if says.big and says.order == ">":
        raise Rejected(Reason.UNSUPPORTED, "a BigTIFF of this kind whose numbers begin with the highest byte")


def deep(data: bytes, says: Directory) -> Deep:
    """Read the values of a deep TIFF.

    Raises:
        Rejected: it is of a kind that nobody reads here.
    """
    layout, whole = _layout(says), says.bits in WHOLE
    kind = f"{FORMATS.get(says.format, '')}{says.bits}"
    readable = (whole and kind[:1].isalpha() and kind != "float8") or (says.format == 1 and 8 < says.bits < 16)
    unpacked = says.compression == RAW or says.compression in LOSSLESS
    predicted = says.predictor == 1 or (whole and says.predictor in (2, 3))
    if not (layout and readable and unpacked and predicted and says.fill_order == 1):
        raise Rejected(
            Reason.UNSUPPORTED,
            f"a TIFF of {says.samples} samples of {says.bits} bits (format {says.format}), photometric "
            f"interpretation {says.photometric}, compression {says.compression}",
        )
    told = None if whole and kind != "uint8" else (0.0, 2.0**says.bits - 1)
    blocks = partial(_blocks, data, says)
    return Deep(says.width, says.height, layout, blocks, kind if whole else "uint16", told, says.photometric == 0)


def _layout(says: Directory) -> str:
    """Say what the samples of a pixel are; nothing where that is not known."""
    layout = LAYOUTS.get(says.photometric, "")
    more = says.samples - COLOURS.get(says.photometric, 0)
    if more and layout:
        # A fourth sample of which nothing is said is alpha; a further one that is 0 means nothing.
        layout += {(): "A" if (layout, more) == ("RGB", 1) else "?", 1: "a", 2: "A", 0: ""}.get(
            says.extra[0] if says.extra else (), "?"
        )
    return "" if more < 0 or "?" in layout else layout


def _blocks(data: bytes, says: Directory) -> Iterator[Block]:
    """Yield the pieces as values (h, w, n) at their places; of planes, all that lie at one place together."""
    planes = says.planes
    wide, high = says.piece
    across, down = -(-says.width // wide), -(-says.height // high)
    each = across * down
    if len(says.offsets) != len(says.sizes) or len(says.offsets) < planes * each:
        raise Rejected(Reason.TRUNCATED, "strips or tiles are missing")
    samples = says.samples // planes
    together = max(1, TOGETHER_BYTES // (says.row_bytes * high))
    for start in range(0, each, together):
        numbers = range(start, min(start + together, each))
        found = [
            _unpacked(data, says, range(plane * each + numbers.start, plane * each + numbers.stop))
            for plane in range(planes)
        ]
        for parts, number in zip(zip(*found, strict=True), numbers, strict=True):
            top, left = number // across * high, number % across * wide
            values = np.concatenate([_values(part, says, wide, samples) for part in parts], axis=2)
            yield top, left, values[: says.height - top, : says.width - left]


def _unpacked(data: bytes, says: Directory, numbers: range) -> list[NDArray[np.uint8]]:
    """Unpack pieces to their bytes, (h, row_bytes) uint8 each."""
    rows, row_bytes = [says.rows(number) for number in numbers], says.row_bytes
    packed = [data[says.offsets[number] : says.offsets[number] + says.sizes[number]] for number in numbers]
    needed = [
        high * row_bytes if says.compression == RAW else says.sizes[n] for high, n in zip(rows, numbers, strict=True)
    ]
    if any(len(part) < least for part, least in zip(packed, needed, strict=True)):
        raise Rejected(Reason.TRUNCATED)
    if says.compression == RAW:
        pairs = zip(packed, rows, strict=True)
        return [np.frombuffer(part, np.uint8, high * row_bytes).reshape(high, row_bytes) for part, high in pairs]
    with Image.open(io.BytesIO(_as_bytes(packed, row_bytes, says, sum(rows))), formats=["TIFF"]) as image:
        unpacked = np.asarray(image)
    return np.split(unpacked, np.cumsum(rows)[:-1])


def _as_bytes(packed: list[bytes], row_bytes: int, says: Directory, height: int) -> bytes:
    """Write a TIFF of 8-bit grey whose strips are these: what libtiff unpacks then are their bytes."""
    count, start = len(packed), 8
    offsets = [start + sum(map(len, packed[:number])) for number in range(count)]
    content = b"".join(packed)
    content += bytes(len(content) % 2)
    lists = start + len(content)
    directory = lists + 8 * count

    def entry(tag: int, *values: int, at: int = 0) -> bytes:
        return struct.pack("<HHII", tag, 4, len(values), values[0] if len(values) == 1 else at)

    entries = [
        entry(WIDTH, row_bytes), entry(HEIGHT, height), entry(BITS, 8), entry(COMPRESSION, says.compression),
        entry(PHOTOMETRIC, 1), entry(OFFSETS, *offsets, at=lists), entry(SAMPLES, 1), entry(ROWS, says.piece[1]),
        entry(SIZES, *map(len, packed), at=lists + 4 * count),
    ]  # fmt: skip
    tables = struct.pack(f"<{2 * count}I", *offsets, *map(len, packed))
    end = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", directory) + content + tables + end


def _values(rows: NDArray[np.uint8], says: Directory, wide: int, samples: int) -> NDArray[np.generic]:
    """Turn rows of bytes into values (h, wide, samples)."""
    height = len(rows)
    if says.bits not in WHOLE:
        bits = np.unpackbits(rows, axis=1)[:, : wide * samples * says.bits].reshape(height, wide, samples, says.bits)
        return bits @ (1 << np.arange(says.bits, dtype=np.uint16)[::-1])
    kind = np.dtype(f"{says.order}{FORMATS[says.format][0]}{says.bits // 8}")
    if says.predictor == 3:  # differences of bytes, the highest of all values first
        flat = np.cumsum(rows.reshape(height, -1, samples), axis=1, dtype=np.uint8).reshape(height, says.bits // 8, -1)
        return np.ascontiguousarray(flat.swapaxes(1, 2)).view(kind.newbyteorder(">")).reshape(height, wide, samples)
    values = np.ascontiguousarray(rows).view(kind).reshape(height, wide, samples)
    if says.predictor == 2:
        whole = values.view(np.dtype(f"{says.order}u{says.bits // 8}"))
        summed = np.cumsum(whole, axis=1, dtype=f"u{says.bits // 8}")
        return summed.view(np.dtype(f"{FORMATS[says.format][0]}{says.bits // 8}"))
    return values
