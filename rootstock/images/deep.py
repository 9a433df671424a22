"""High-bit-depth ("deep") images: more than eight bits per sample, signed integers or floats; mapped to eight bits.

A file states its sample type, but not always which values are black and white: floats, signed and 32-bit integers, and
10 to 14 bits stored in 16 leave that open. Then `ingest.sources[].value_range` defines it for all images of a source.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Range = tuple[float, float]
Block = tuple[int, int, NDArray[np.generic]]  # top, left, values (h, w, n)
DARK = 2**14  # if no 16-bit image of a source reaches this, they may have 10 to 14 bits, and value_range is required
UINT16, FULL = "uint16", (0.0, 65535.0)
USUAL = (1.0, 2.0**8 - 1, 2.0**10 - 1, 2.0**12 - 1, 2.0**14 - 1, 2.0**16 - 1, 2.0**32 - 1)
CHUNK_BYTES = 2**23  # of values converted at a time


@dataclass(frozen=True, slots=True)
class ObservedRange:
    """The sample type, minimum and maximum of an image whose value range is not known from its file."""

    kind: str
    low: float
    high: float

    @property
    def unclear(self) -> bool:
        """Whether the black and white levels have to be given by `value_range`."""
        return self.kind != UINT16 or self.high < DARK

    def merged(self, other: "ObservedRange | None") -> "ObservedRange":
        """Return the union of two observed ranges."""
        if other is None:
            return self
        kinds = {*self.kind.split(", "), *other.kind.split(", ")}
        return ObservedRange(", ".join(sorted(kinds)), min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class DeepImage:
    """A deep image: its sample layout, and its values in blocks.

    `known_range` is the value range if the file defines it: the declared bits or maximum.
    """

    width: int
    height: int
    layout: str  # of the samples of a pixel: L, RGB or CMYK, plus A for alpha or a for premultiplied alpha
    blocks: Callable[[], Iterator[Block]]
    kind: str
    known_range: Range | None
    inverted: bool = False  # white is zero
    transparent_value: tuple[int, ...] | None = None  # the colour that is transparent
    extra_bytes: int = 0  # that reading takes besides the pixels

    def observed_range(self) -> ObservedRange:
        """Return the range of the finite colour values, alpha excluded."""
        low, high = np.inf, -np.inf
        colours = self.colours
        for _, _, values in self.blocks():
            seen = values[..., :colours]
            if seen.dtype.kind == "f":
                seen = seen[np.isfinite(seen)]
            if seen.size:
                low, high = min(low, float(seen.min())), max(high, float(seen.max()))
        return ObservedRange(self.kind, low, high) if low <= high else ObservedRange(self.kind, 0.0, 0.0)

    @property
    def colours(self) -> int:
        """Return the number of colour samples per pixel."""
        return len(self.layout.rstrip("Aa"))

    def guess_range(self, found: ObservedRange) -> Range:
        """Guess the value range of a single image, for display only; datasets are never built on a guess."""
        if self.known_range or not found.unclear:
            return self.known_range or FULL
        if found.low < 0 and self.kind.startswith("int"):
            return float(np.iinfo(self.kind).min), float(np.iinfo(self.kind).max)
        usual = USUAL if self.kind.startswith("float") else USUAL[1:]
        return 0.0, next((high for high in usual if found.high <= high), found.high)

    def to_image(self, value_range: Range) -> Image.Image:
        """Map a value range to 0..255; grey stays grey, and transparency is composited over white."""
        shape = (self.height, self.width, self.colours) if self.colours > 1 else (self.height, self.width)
        pixels: NDArray[np.uint8] = np.empty(shape, np.uint8)
        for top, left, values in self.blocks():
            at = pixels[top : top + values.shape[0], left : left + values.shape[1]]
            for rows, columns in _chunks(values.shape):
                part = self._bytes(values[rows, columns], value_range)
                at[rows, columns] = part[..., 0] if self.colours == 1 else part
        return Image.fromarray(pixels, "CMYK").convert("RGB") if self.colours == 4 else Image.fromarray(pixels)

    def _bytes(self, values: NDArray[np.generic], value_range: Range) -> NDArray[np.uint8]:
        colours = self.colours
        low, high = value_range
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = (values[..., :colours].astype(np.float64) - low) / (high - low)
        scaled = np.clip(np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
        if self.inverted:
            scaled = 1 - scaled
        if len(self.layout) > colours:
            full = np.iinfo(self.kind).max if self.kind.startswith(("u", "i")) else 1.0
            alpha = np.clip(values[..., colours:].astype(np.float64) / full, 0, 1)
            paper = 0 if colours == 4 else 1  # white is no ink
            scaled = np.clip(scaled * (alpha if self.layout[-1] == "A" else 1) + (1 - alpha) * paper, 0, 1)
        if self.transparent_value is not None:
            scaled[(values[..., :colours] == np.array(self.transparent_value)).all(axis=-1)] = 1
        seen: NDArray[np.uint8] = (scaled * 255).round().astype(np.uint8)
        return seen


def _chunks(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Yield slices of values (h, w, n) that are small even as several float64 copies."""
    height, width, samples = shape
    wide = min(width, max(1, CHUNK_BYTES // (8 * samples)))
    high = max(1, CHUNK_BYTES // (8 * samples * wide))
    for top in range(0, height, high):
        for left in range(0, width, wide):
            yield slice(top, top + high), slice(left, left + wide)
