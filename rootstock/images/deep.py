"""Images of more than eight bits a sample, or of other numbers than unsigned integers: their values, and which of them
are black and white.

A file says its type, not always what its values mean: floats, signed and 32-bit integers, and 10 to 14 bits in 16 leave
that open. Then `ingest.sources[].value_range` says it, for all images of a source.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Range = tuple[float, float]
Block = tuple[int, int, NDArray[np.generic]]  # top, left, values (h, w, n)
DARK = 2**14  # 16-bit images none of which reaches this are taken to be of 10 to 14 bits, until somebody says
UINT16, FULL = "uint16", (0.0, 65535.0)
USUAL = (1.0, 2.0**8 - 1, 2.0**10 - 1, 2.0**12 - 1, 2.0**14 - 1, 2.0**16 - 1, 2.0**32 - 1)
CHUNK_BYTES = 2**23  # of values that are turned into bytes at a time


@dataclass(frozen=True, slots=True)
class Found:
    """Values of an image whose range its file does not surely tell: their type, the least and the greatest."""

    kind: str
    low: float
    high: float

    @property
    def unclear(self) -> bool:
        """Whether somebody has to say which values are black and white."""
        return self.kind != UINT16 or self.high < DARK

    def merged(self, other: "Found | None") -> "Found":
        """Put together what two images, or sets of images, hold."""
        if other is None:
            return self
        kinds = {*self.kind.split(", "), *other.kind.split(", ")}
        return Found(", ".join(sorted(kinds)), min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class Deep:
    """A deep image: how to get its values, piece by piece, and what they are.

    `told` is the range that the file tells for sure: a type that holds no more bits than the values have.
    """

    width: int
    height: int
    layout: str  # L, RGB or CMYK, and A for alpha or a for a premultiplied one: what the samples of a pixel are
    blocks: Callable[[], Iterator[Block]]
    kind: str
    told: Range | None
    inverted: bool = False  # white is zero
    clear: tuple[int, ...] | None = None  # the value that is transparent
    beside: int = 0  # bytes that reading takes beside those of the pixels

    def found(self) -> Found:
        """Find the least and greatest value that are numbers; alpha is none of them."""
        low, high = np.inf, -np.inf
        colours = self.colours
        for _, _, values in self.blocks():
            seen = values[..., :colours]
            if seen.dtype.kind == "f":
                seen = seen[np.isfinite(seen)]
            if seen.size:
                low, high = min(low, float(seen.min())), max(high, float(seen.max()))
        return Found(self.kind, low, high) if low <= high else Found(self.kind, 0.0, 0.0)

    @property
    def colours(self) -> int:
        """Count the samples that are colours."""
        return len(self.layout.rstrip("Aa"))

    def guessed(self, found: Found) -> Range:
        """Guess the range of one image that nothing is known of, to look at it; no data set is built on a guess."""
        if self.told or not found.unclear:
            return self.told or FULL
        if found.low < 0 and self.kind.startswith("int"):
            return float(np.iinfo(self.kind).min), float(np.iinfo(self.kind).max)
        usual = USUAL if self.kind.startswith("float") else USUAL[1:]
        return 0.0, next((high for high in usual if found.high <= high), found.high)

    def image(self, values_of: Range) -> Image.Image:
        """Map a range to black and white; a grey image stays one, and transparency lies on white."""
        shape = (self.height, self.width, self.colours) if self.colours > 1 else (self.height, self.width)
        pixels: NDArray[np.uint8] = np.empty(shape, np.uint8)
        for top, left, values in self.blocks():
            at = pixels[top : top + values.shape[0], left : left + values.shape[1]]
            for rows, columns in _chunks(values.shape):
                part = self._bytes(values[rows, columns], values_of)
                at[rows, columns] = part[..., 0] if self.colours == 1 else part
        return Image.fromarray(pixels, "CMYK").convert("RGB") if self.colours == 4 else Image.fromarray(pixels)

    def _bytes(self, values: NDArray[np.generic], values_of: Range) -> NDArray[np.uint8]:
        colours = self.colours
        low, high = values_of
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = (values[..., :colours].astype(np.float64) - low) / (high - low)
        scaled = np.clip(np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
        if self.inverted:
            scaled = 1 - scaled
        if len(self.layout) > colours:
            full = np.iinfo(self.kind).max if self.kind.startswith(("u", "i")) else 1.0
            alpha = np.clip(values[..., colours:].astype(np.float64) / full, 0, 1)
            paper = 0 if colours == 4 else 1  # white: no ink
            scaled = np.clip(scaled * (alpha if self.layout[-1] == "A" else 1) + (1 - alpha) * paper, 0, 1)
        if self.clear is not None:
            scaled[(values[..., :colours] == np.array(self.clear)).all(axis=-1)] = 1
        seen: NDArray[np.uint8] = (scaled * 255).round().astype(np.uint8)
        return seen


def _chunks(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Cut values (h, w, n) into pieces of which a few copies in float64 are small."""
    height, width, samples = shape
    wide = min(width, max(1, CHUNK_BYTES // (8 * samples)))
    high = max(1, CHUNK_BYTES // (8 * samples * wide))
    for top in range(0, height, high):
        for left in range(0, width, wide):
            yield slice(top, top + high), slice(left, left + wide)
