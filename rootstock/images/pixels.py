"""Decodes image files to pixels: the one definition for ingest, training, evaluation and prediction.

An image is upright RGB with eight bits per channel, as a viewer would show it: EXIF orientation applied, transparency
composited over white. The format is detected from the first bytes, and only plug-ins of the formats below are used.
"""

import io
import posixpath
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    WebPImagePlugin,
)

from rootstock.images import jpeg, orientation, png, pnm, tiff, tiff_values, webp
from rootstock.images.deep import DeepImage, Range
from rootstock.images.integrity import rejection
from rootstock.images.jpeg import Header
from rootstock.images.reasons import Reason, Rejected

EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
FORMAT_OF = {extension: name for name, extensions in EXTENSIONS.items() for extension in extensions}
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")  # the last two are wrong, and common
PORTABLE = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"PF")
# Peak memory of decoding per pixel: the image, its RGB copy and its rotated copy.
BYTES_A_PIXEL, WEBP_BYTES_A_PIXEL, JPEG_BYTES_A_PIXEL = 12, 24, 8
TIMED_BYTES = 2**20  # smaller files are fast even if read byte by byte
STRIP_PIXELS = 2**20  # composited over white at a time


def format_by_name(path: str) -> str | None:
    """Return the format of a file's extension; None if it is not a supported one."""
    return FORMAT_OF.get(posixpath.splitext(path)[1].lower())  # five times as fast as pathlib


def format_of(data: bytes) -> str | None:
    """Return the format that a file's first bytes identify; None if it is not a supported one."""
    if data.startswith(jpeg.START):
        return "JPEG"
    if data.startswith(png.START):
        return "PNG"
    if data.startswith(TIFFS):
        return "TIFF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    return "PPM" if data[:2] in PORTABLE else None


class _TimedFile(io.BytesIO):
    """An in-memory file whose reading is aborted at a CPU time limit."""

    until = float("inf")

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self.until:
            raise Rejected(Reason.TOO_COSTLY, "reading takes too long")
        return super().read(size)


# OpenedFile directly: Image.open would try all plug-ins, and has one global pixel limit.
PLUGINS: dict[str, Any] = {
    "JPEG": JpegImagePlugin.JpegImageFile, "PNG": PngImagePlugin.PngImageFile, "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile, "TIFF": tiff_values.Plugin, "GIF": GifImagePlugin.GifImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}  # fmt: skip


@dataclass
class OpenedFile:
    """A file whose header has been read; `stored` is the (width, height) before rotation.

    `deep` is set for images of more than eight bits per sample, signed integers or floats; these need a value range.
    `decoded` are the pixels of a JPEG as stored, (h, w, 3), if the check of the file has decoded them.
    """

    format: str
    data: bytes
    seconds: float | None
    stored: tuple[int, int] = (0, 0)
    orientation: int = orientation.UPRIGHT
    jpeg: Header | None = None
    deep: DeepImage | None = None
    decoded: NDArray[np.uint8] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Return the width and height of the upright image."""
        width, height = self.stored
        return (height, width) if self.orientation in orientation.LYING else (width, height)

    @property
    def cost(self) -> int:
        """Return the peak memory of decoding, in bytes."""
        each = {"WEBP": WEBP_BYTES_A_PIXEL, "JPEG": JPEG_BYTES_A_PIXEL}.get(self.format, BYTES_A_PIXEL)
        if self.jpeg and self.jpeg.progressive:
            each += 2 * self.jpeg.components  # the coefficients of all pixels, two bytes each
        return self.stored[0] * self.stored[1] * each + (self.deep.extra_bytes if self.deep else 0)

    @cached_property
    def pillow(self) -> ImageFile.ImageFile:
        """Open the file with Pillow.

        Raises:
            Rejected: the header is damaged.
        """
        data = jpeg.without_metadata(self.data, self.jpeg) if self.jpeg else self.data
        file = io.BytesIO(data)
        if self.seconds is not None and len(data) >= TIMED_BYTES:
            file = _TimedFile(data)
            file.until = time.thread_time() + self.seconds
        try:
            image: ImageFile.ImageFile = PLUGINS[self.format](file)
        except Exception as error:  # Pillow's plug-ins raise many types
            raise rejection(error, self.data) from None
        return image

    def rgb(self, value_range: Range | None = None) -> Image.Image:
        """Decode to an upright 8-bit image: RGB, or grey for a single-channel deep image.

        Args:
            value_range: black and white levels of a deep image; None guesses them.
        """
        if self.deep:
            flat = self.deep.to_image(value_range or self.deep.guess_range(self.deep.observed_range()))
        else:
            flat = _on_white(self.pillow)
        return orientation.upright(flat, self.orientation)

    def reduced(self, mode: str, side: int) -> Image.Image:
        """Decode a JPEG at the smallest fraction of its size with no side below `side` pixels; others at full size."""
        if self.jpeg:
            self.pillow.draft(mode, (side, side))
        return self.rgb()


def decode(data: bytes, value_range: Range | None = None) -> Image.Image:
    """Decode the bytes of a file to an upright RGB image, 8 bits per channel.

    Args:
        data: the file.
        value_range: black and white levels of a deep image. None guesses them, for displaying a single file: images in
            shards need none, and neither ingest nor predict guesses.

    Raises:
        Rejected: it is not a supported image. Damaged pixels raise whatever Pillow raises.
    """
    return open_file(data).rgb(value_range).convert("RGB")


def open_file(data: bytes, seconds: float | None = None) -> OpenedFile:
    """Read the header of a file, without decoding pixels.

    Args:
        data: the file.
        seconds: CPU time limit of parsers in Python; None for no limit.

    Raises:
        Rejected: its format is not supported, or its header is damaged.
    """
    kind = format_of(data)
    if kind is None:
        raise Rejected(Reason.NOT_AN_IMAGE)
    found = OpenedFile(kind, data, seconds)
    match kind:
        case "JPEG":
            found.jpeg = jpeg.read(data)
            found.stored, found.orientation = (found.jpeg.width, found.jpeg.height), found.jpeg.orientation
        case "PNG":
            header = png.read(data)
            found.stored, found.orientation, found.data = header.size, header.orientation, header.plain
            found.deep = png.deep(header) if header.bits == 16 else None
        case "TIFF":
            directory = tiff.read(data)
            found.stored, found.orientation = (directory.width, directory.height), directory.orientation
            if directory.is_deep:
                found.deep = tiff_values.deep(data, directory)
            else:
                tiff.check_pillow(directory)
        case "WEBP":
            found.stored, found.orientation = webp.read(data)
        case "PPM":
            found.deep = pnm.read(data)
            found.stored = (found.deep.width, found.deep.height) if found.deep else found.pillow.size
        case _:
            found.stored = found.pillow.size
    return found


def _on_white(image: ImageFile.ImageFile) -> Image.Image:
    """Decode, and composite transparency over white, a strip at a time."""
    shown = image.tile[0].extents if image.format == "GIF" and image.tile else None
    image.load()
    if not image.has_transparency_data or _lacks_alpha(image):
        return _only(image.convert("RGB"), shown)
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width)
    flat = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height))).convert("RGBA")
        flat.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return flat


def _lacks_alpha(image: Image.Image) -> bool:
    """Whether a BMP is fully transparent: some programs leave the alpha bytes zero."""
    return image.format == "BMP" and image.getchannel("A").getextrema() == (0, 0)


def _only(image: Image.Image, shown: tuple[int, int, int, int] | None) -> Image.Image:
    """Fill with white what the first frame of a GIF does not cover."""
    if shown in (None, (0, 0, *image.size)):
        return image
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image.crop(shown), shown)
    return flat
