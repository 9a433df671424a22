"""The values of TIFF files that Pillow opens as something else than they are, or not at all.

Pillow (13) inverts no 16-bit image whose white is zero, takes signed bytes for unsigned, keeps eight of sixteen bits
of colour, and garbles them where they lie in planes. Here each strip or tile is unpacked by libtiff, as bytes of which
nothing is made, and put together by what the directory says of them.
"""

import io
import struct
from collections.abc import Iterator
from functools import partial
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImagePalette, TiffImagePlugin

from rootstock.images import tiff
from rootstock.images.deep import Block, Deep
from rootstock.images.reasons import Reason, Rejected
from rootstock.images.tiff import Directory

TOGETHER_BYTES = 2**22  # of unpacked pieces at a time
MOST_BYTES = 2**29  # of one piece: it is unpacked as a whole
WHOLE = (8, 16, 32, 64)  # bits of a type of its own
FORMATS = {1: "uint", 2: "int", 3: "float"}


class Plugin(TiffImagePlugin.TiffImageFile):
    """A TIFF that is neither turned by Pillow nor held to its limit of pixels: both are decided here."""

    def load_prepare(self) -> None:  # noqa: D102
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        ImageFile.ImageFile.load_prepare(self)

    def load_end(self) -> None:  # noqa: D102
        self._size = self._tile_size

    def _setup(self) -> None:
        super()._setup()
        colours = self.tag_v2.get(TiffImagePlugin.COLORMAP, ())
        if self.palette and max(colours) < 256:  # of 16 bits by the standard; some programs write eight
            self.palette = ImagePalette.raw("RGB;L", bytes(colours))


def deep(data: bytes, says: Directory) -> Deep:
    """Read the values of a deep TIFF.

    Raises:
        Rejected: it is of a kind that nobody reads here.
    """
    layout, whole = _layout(says), says.bits in WHOLE
    kind = f"{FORMATS.get(says.format, '')}{says.bits}"
    readable = (whole and kind[:1].isalpha() and kind != "float8") or (says.format == 1 and 8 < says.bits < 16)
    unpacked = says.compression == tiff.RAW or says.compression in tiff.LOSSLESS
    predicted = says.predictor == 1 or (whole and says.predictor in (2, 3))
    if not (layout and readable and unpacked and predicted and says.fill_order == 1):
        raise Rejected(
            Reason.UNSUPPORTED,
            f"a TIFF of {says.samples} samples of {says.bits} bits (format {says.format}), photometric "
            f"interpretation {says.photometric}, compression {says.compression}",
        )
    beside = 0 if says.compression == tiff.RAW else max(says.row_bytes * says.piece[1], TOGETHER_BYTES) * says.planes
    if beside > MOST_BYTES:
        raise Rejected(Reason.TOO_COSTLY, f"strips or tiles of {beside:,} bytes")
    told = None if whole and kind != "uint8" else (0.0, 2.0**says.bits - 1)
    blocks = partial(_blocks, data, says)
    kind = kind if whole else "uint16"
    own = 3 * beside  # Pillow's, and the copies of it by which numpy gets it
    return Deep(says.width, says.height, layout, blocks, kind, told, says.photometric == 0, beside=own)


def _layout(says: Directory) -> str:
    """Say what the samples of a pixel are; nothing where that is not known."""
    layout = tiff.LAYOUTS.get(says.photometric, "")
    more = says.samples - tiff.COLOURS.get(says.photometric, 0)
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
        if across == 1:  # they lie below each other
            yield _placed(found, says, samples, numbers.start * high, 0)
            continue
        parts = [np.split(rows, len(numbers)) for rows in found]
        for number, *part in zip(numbers, *parts, strict=True):
            yield _placed(part, says, samples, number // across * high, number % across * wide)


def _placed(planes: list[NDArray[np.uint8]], says: Directory, samples: int, top: int, left: int) -> Block:
    values = np.concatenate([_values(rows, says, says.piece[0], samples) for rows in planes], axis=2)
    return top, left, values[: says.height - top, : says.width - left]


def _unpacked(data: bytes, says: Directory, numbers: range) -> NDArray[np.uint8]:
    """Unpack pieces to their bytes, (h, row_bytes) uint8, one below the other."""
    rows, row_bytes = [says.rows(number) for number in numbers], says.row_bytes
    packed = [data[says.offsets[number] : says.offsets[number] + says.sizes[number]] for number in numbers]
    needed = [
        high * row_bytes if says.compression == tiff.RAW else says.sizes[n]
        for high, n in zip(rows, numbers, strict=True)
    ]
    if any(len(part) < least for part, least in zip(packed, needed, strict=True)):
        raise Rejected(Reason.TRUNCATED)
    if says.compression == tiff.RAW:
        pixels = (
            packed[0] if len(packed) == 1 else b"".join(part[:size] for part, size in zip(packed, needed, strict=True))
        )
        return np.frombuffer(pixels, np.uint8, sum(needed)).reshape(-1, row_bytes)
    return np.asarray(Plugin(io.BytesIO(_as_bytes(packed, row_bytes, says, sum(rows)))))


def _as_bytes(packed: list[bytes], row_bytes: int, says: Directory, height: int) -> bytes:
    """Write a TIFF of 8-bit grey whose strips are these: what libtiff unpacks then are their bytes."""
    count, start = len(packed), 8
    offsets = list(accumulate(map(len, packed[:-1]), initial=start))
    content = b"".join(packed)
    content += bytes(len(content) % 2)
    lists = start + len(content)
    directory = lists + 8 * count

    def entry(tag: int, *values: int, at: int = 0) -> bytes:
        return struct.pack("<HHII", tag, 4, len(values), values[0] if len(values) == 1 else at)

    entries = [
        entry(tiff.WIDTH, row_bytes), entry(tiff.HEIGHT, height), entry(tiff.BITS, 8),
        entry(tiff.COMPRESSION, says.compression), entry(tiff.PHOTOMETRIC, 1),
        entry(tiff.OFFSETS, *offsets, at=lists), entry(tiff.SAMPLES, 1), entry(tiff.ROWS, says.piece[1]),
        entry(tiff.SIZES, *map(len, packed), at=lists + 4 * count),
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
