"""Decodes TIFF files that Pillow decodes wrongly or not at all.

Pillow (13) does not invert 16-bit white-is-zero images, reads signed bytes as unsigned, keeps eight of sixteen bits per
colour, and garbles planar ones. Here libtiff only decompresses each strip or tile to raw bytes, which are interpreted
according to the directory.
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
from rootstock.images.deep import Block, DeepImage
from rootstock.images.reasons import Reason, Rejected
from rootstock.images.tiff import Directory

TOGETHER_BYTES = 2**22  # unpacked pieces per block
MOST_BYTES = 2**29  # per piece, which is unpacked as a whole
WHOLE = (8, 16, 32, 64)  # bits that are a numpy dtype
FORMATS = {1: "uint", 2: "int", 3: "float"}


class Plugin(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF plug-in without rotation and pixel limit, which are handled here."""

    def load_prepare(self) -> None:  # noqa: D102
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        ImageFile.ImageFile.load_prepare(self)

    def load_end(self) -> None:  # noqa: D102
        self._size = self._tile_size

    def _setup(self) -> None:
        super()._setup()
        colours = self.tag_v2.get(TiffImagePlugin.COLORMAP, ())
        if self.palette and max(colours) < 256:  # 16 bits by the standard; some programs write eight
            self.palette = ImagePalette.raw("RGB;L", bytes(colours))


def deep(data: bytes, directory: Directory) -> DeepImage:
    """Return the values of a deep TIFF.

    Raises:
        Rejected: its kind is not supported.
    """
    layout, whole = _layout(directory), directory.bits in WHOLE
    kind = f"{FORMATS.get(directory.format, '')}{directory.bits}"
    readable = (whole and kind[:1].isalpha() and kind != "float8") or (
        directory.format == 1 and 8 < directory.bits < 16
    )
    unpacked = directory.compression == tiff.RAW or directory.compression in tiff.LOSSLESS
    predicted = directory.predictor == 1 or (whole and directory.predictor in (2, 3))
    if not (layout and readable and unpacked and predicted and directory.fill_order == 1):
        raise Rejected(
            Reason.UNSUPPORTED,
            f"TIFF with {directory.samples} samples of {directory.bits} bits (format {directory.format}), photometric "
            f"interpretation {directory.photometric}, compression {directory.compression}",
        )
    unpacked_bytes = (
        0
        if directory.compression == tiff.RAW
        else max(directory.row_bytes * directory.piece[1], TOGETHER_BYTES) * directory.planes
    )
    if unpacked_bytes > MOST_BYTES:
        raise Rejected(Reason.TOO_COSTLY, f"strips or tiles of {unpacked_bytes:,} bytes")
    known_range = None if whole and kind != "uint8" else (0.0, 2.0**directory.bits - 1)
    blocks = partial(_blocks, data, directory)
    kind = kind if whole else "uint16"
    # Pillow's buffer and the copies made for numpy: three times the unpacked bytes.
    return DeepImage(
        directory.width,
        directory.height,
        layout,
        blocks,
        kind,
        known_range,
        directory.photometric == 0,
        extra_bytes=3 * unpacked_bytes,
    )


def _layout(directory: Directory) -> str:
    """Return the layout of the samples of a pixel; "" if unknown."""
    layout = tiff.LAYOUTS.get(directory.photometric, "")
    more = directory.samples - tiff.COLOURS.get(directory.photometric, 0)
    if more and layout:
        # An undeclared fourth sample is alpha; an extra sample declared as 0 (unspecified) is ignored.
        layout += {(): "A" if (layout, more) == ("RGB", 1) else "?", 1: "a", 2: "A", 0: ""}.get(
            directory.extra[0] if directory.extra else (), "?"
        )
    return "" if more < 0 or "?" in layout else layout


def _blocks(data: bytes, directory: Directory) -> Iterator[Block]:
    """Yield the strips or tiles as blocks of values (h, w, n), all planes of a position together."""
    planes = directory.planes
    wide, high = directory.piece
    across, down = -(-directory.width // wide), -(-directory.height // high)
    each = across * down
    if len(directory.offsets) != len(directory.sizes) or len(directory.offsets) < planes * each:
        raise Rejected(Reason.TRUNCATED, "strips or tiles are missing")
    samples = directory.samples // planes
    together = max(1, TOGETHER_BYTES // (directory.row_bytes * high))
    for start in range(0, each, together):
        numbers = range(start, min(start + together, each))
        found = [
            _unpacked(data, directory, range(plane * each + numbers.start, plane * each + numbers.stop))
            for plane in range(planes)
        ]
        if across == 1:  # stacked vertically
            yield _placed(found, directory, samples, numbers.start * high, 0)
            continue
        parts = [np.split(rows, len(numbers)) for rows in found]
        for number, *part in zip(numbers, *parts, strict=True):
            yield _placed(part, directory, samples, number // across * high, number % across * wide)


def _placed(planes: list[NDArray[np.uint8]], directory: Directory, samples: int, top: int, left: int) -> Block:
    values = np.concatenate([_values(rows, directory, directory.piece[0], samples) for rows in planes], axis=2)
    return top, left, values[: directory.height - top, : directory.width - left]


def _unpacked(data: bytes, directory: Directory, numbers: range) -> NDArray[np.uint8]:
    """Decompress pieces to bytes (h, row_bytes) uint8, stacked vertically."""
    rows, row_bytes = [directory.rows(number) for number in numbers], directory.row_bytes
    packed = [
        data[directory.offsets[number] : directory.offsets[number] + directory.sizes[number]] for number in numbers
    ]
    needed = [
        high * row_bytes if directory.compression == tiff.RAW else directory.sizes[n]
        for high, n in zip(rows, numbers, strict=True)
    ]
    if any(len(part) < least for part, least in zip(packed, needed, strict=True)):
        raise Rejected(Reason.TRUNCATED)
    if directory.compression == tiff.RAW:
        pixels = (
            packed[0] if len(packed) == 1 else b"".join(part[:size] for part, size in zip(packed, needed, strict=True))
        )
        return np.frombuffer(pixels, np.uint8, sum(needed)).reshape(-1, row_bytes)
    return np.asarray(Plugin(io.BytesIO(_as_bytes(packed, row_bytes, directory, sum(rows)))))


def _as_bytes(packed: list[bytes], row_bytes: int, directory: Directory, height: int) -> bytes:
    """Build an 8-bit grey TIFF with these strips, so that libtiff decompresses them to raw bytes."""
    count, start = len(packed), 8
    offsets = list(accumulate(map(len, packed[:-1]), initial=start))
    content = b"".join(packed)
    content += bytes(len(content) % 2)
    lists = start + len(content)
    directory_at = lists + 8 * count

    def entry(tag: int, *values: int, at: int = 0) -> bytes:
        return struct.pack("<HHII", tag, 4, len(values), values[0] if len(values) == 1 else at)

    entries = [
        entry(tiff.WIDTH, row_bytes), entry(tiff.HEIGHT, height), entry(tiff.BITS, 8),
        entry(tiff.COMPRESSION, directory.compression), entry(tiff.PHOTOMETRIC, 1),
        entry(tiff.OFFSETS, *offsets, at=lists), entry(tiff.SAMPLES, 1), entry(tiff.ROWS, directory.piece[1]),
        entry(tiff.SIZES, *map(len, packed), at=lists + 4 * count),
    ]  # fmt: skip
    tables = struct.pack(f"<{2 * count}I", *offsets, *map(len, packed))
    end = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", directory_at) + content + tables + end


def _values(rows: NDArray[np.uint8], directory: Directory, wide: int, samples: int) -> NDArray[np.generic]:
    """Convert rows of bytes to values (h, wide, samples)."""
    height = len(rows)
    if directory.bits not in WHOLE:
        bits = np.unpackbits(rows, axis=1)[:, : wide * samples * directory.bits].reshape(
            height, wide, samples, directory.bits
        )
        return bits @ (1 << np.arange(directory.bits, dtype=np.uint16)[::-1])
    kind = np.dtype(f"{directory.order}{FORMATS[directory.format][0]}{directory.bits // 8}")
    if directory.predictor == 3:  # byte differences, most significant bytes of all values first
        flat = np.cumsum(rows.reshape(height, -1, samples), axis=1, dtype=np.uint8).reshape(
            height, directory.bits // 8, -1
        )
        return np.ascontiguousarray(flat.swapaxes(1, 2)).view(kind.newbyteorder(">")).reshape(height, wide, samples)
    values = np.ascontiguousarray(rows).view(kind).reshape(height, wide, samples)
    if directory.predictor == 2:
        whole = values.view(np.dtype(f"{directory.order}u{directory.bits // 8}"))
        summed = np.cumsum(whole, axis=1, dtype=f"u{directory.bits // 8}")
        return summed.view(np.dtype(f"{FORMATS[directory.format][0]}{directory.bits // 8}"))
    return values
