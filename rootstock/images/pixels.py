"""Image files into pixels: the one place that says what they are, for ingest, training, evaluation and prediction.

An image is upright RGB, eight bits a channel, as a viewer would show it: turned as EXIF says, transparency over white.
Files are opened by what they begin with, and by the plug-ins for the formats below alone.
"""

import io
import posixpath
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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
from rootstock.images.deep import Deep, Range
from rootstock.images.jpeg import Header
from rootstock.images.reasons import Reason, Rejected
from rootstock.images.wholeness import why

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
# Bytes that decoding takes for each pixel, at its widest: the image, its copy in RGB, and its copy upright.
BYTES_A_PIXEL, WEBP_BYTES_A_PIXEL, JPEG_BYTES_A_PIXEL = 12, 24, 8
CLOCKED_BYTES = 2**20  # no program takes long to read less, a byte at a time
STRIP_PIXELS = 2**20  # that are laid on white at a time


def format_by_name(path: str) -> str | None:
    """Say which format a file's extension names, if it is one that is taken in."""
    return FORMAT_OF.get(posixpath.splitext(path)[1].lower())  # a pathlib.Path takes five times as long to make


def format_of(data: bytes) -> str | None:
    """Say which format a file has by what it begins with."""
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


class _Clocked(io.BytesIO):
    """A file in memory that is not read any longer than so many seconds of a core."""

    until = float("inf")

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self.until:
            raise Rejected(Reason.TOO_COSTLY, "it takes too long to read")
        return super().read(size)


# Opened directly: Image.open would try all plug-ins it has, and has one limit of pixels for the whole process.
PLUGINS: dict[str, Any] = {
    "JPEG": JpegImagePlugin.JpegImageFile, "PNG": PngImagePlugin.PngImageFile, "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile, "TIFF": tiff_values.Plugin, "GIF": GifImagePlugin.GifImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}  # fmt: skip


@dataclass
class Opened:
    """A file of which the header has been read; `stored` is the size of the pixels before they are turned.

    `deep` is there for an image of more than eight bits a sample, or of other values; only these need a value range.
    """

    format: str
    data: bytes
    seconds: float | None
    stored: tuple[int, int] = (0, 0)
    orientation: int = orientation.UPRIGHT
    jpeg: Header | None = None
    deep: Deep | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Give the width and height of the upright image."""
        width, height = self.stored
        return (height, width) if self.orientation in orientation.LYING else (width, height)

    @property
    def cost(self) -> int:
        """Say how many bytes decoding takes."""
        each = {"WEBP": WEBP_BYTES_A_PIXEL, "JPEG": JPEG_BYTES_A_PIXEL}.get(self.format, BYTES_A_PIXEL)
        if self.jpeg and self.jpeg.whole_first:
            each += 2 * self.jpeg.components  # a progressive JPEG keeps the coefficients of all pixels, two bytes each
        return self.stored[0] * self.stored[1] * each + (self.deep.beside if self.deep else 0)

    @cached_property
    def pillow(self) -> ImageFile.ImageFile:
        """Open it by Pillow.

        Raises:
            Rejected: the header is damaged.
        """
        data = jpeg.without_metadata(self.data, self.jpeg) if self.jpeg else self.data
        file = io.BytesIO(data)
        if self.seconds is not None and len(data) >= CLOCKED_BYTES:
            file = _Clocked(data)
            file.until = time.thread_time() + self.seconds
        try:
            image: ImageFile.ImageFile = PLUGINS[self.format](file)
        except Exception as error:  # Pillow's plug-ins raise whatever the parser met
            raise why(error, self.data) from None
        return image

    def rgb(self, values_of: Range | None = None) -> Image.Image:
        """Decode to an upright image of eight bits: RGB, or grey of a deep image of one sample a pixel.

        Args:
            values_of: black and white of a deep image; None guesses them.
        """
        if self.deep:
            flat = self.deep.image(values_of or self.deep.guessed(self.deep.found()))
        else:
            flat = _on_white(self.pillow)
        return orientation.upright(flat, self.orientation)

    def reduced(self, mode: str, side: int) -> Image.Image:
        """Decode a JPEG at a fraction of its size at which no side is below `side` pixels; others whole."""
        if self.jpeg:
            self.pillow.draft(mode, (side, side))
        return self.rgb()


def decode(data: bytes, values_of: Range | None = None) -> Image.Image:
    """Decode the bytes of a file to an upright RGB image, 8 bits a channel.

    Args:
        data: the file.
        values_of: black and white of a file of more than 8 bits or of floats. None guesses, for a look at a single
            file: what ingest has packed needs none, and neither ingest nor predict guesses.

    Raises:
        Rejected: it is no image that is taken in; whatever Pillow raises where pixels are damaged.
    """
    return opened(data).rgb(values_of).convert("RGB")


def opened(data: bytes, seconds: float | None = None) -> Opened:
    """Read the header of a file; no pixel is decoded.

    Args:
        data: the file.
        seconds: of a core, after which Python code that reads it gives up; None never does.

    Raises:
        Rejected: it is no image of a format that is taken in, or its header is damaged.
    """
    kind = format_of(data)
    if kind is None:
        raise Rejected(Reason.NOT_AN_IMAGE)
    found = Opened(kind, data, seconds)
    match kind:
        case "JPEG":
            found.jpeg = jpeg.read(data)
            found.stored, found.orientation = (found.jpeg.width, found.jpeg.height), found.jpeg.orientation
        case "PNG":
            header = png.read(data)
            found.stored, found.orientation, found.data = header.size, header.orientation, header.plain
            found.deep = png.deep(header) if header.bits == 16 else None
        case "TIFF":
            says = tiff.read(data)
            found.stored, found.orientation = (says.width, says.height), says.orientation
            if says.is_deep:
                found.deep = tiff_values.deep(data, says)
            else:
                tiff.check_pillow(says)
        case "WEBP":
            found.stored, found.orientation = webp.read(data)
        case "PPM":
            found.deep = pnm.read(data)
            found.stored = (found.deep.width, found.deep.height) if found.deep else found.pillow.size
        case _:
            found.stored = found.pillow.size
    return found


def _on_white(image: ImageFile.ImageFile) -> Image.Image:
    """Decode, and lay what is transparent on white, a strip at a time."""
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
    """Whether nothing of a BMP can be seen: then it is a program's that leaves the bytes for alpha empty."""
    return image.format == "BMP" and image.getchannel("A").getextrema() == (0, 0)


def _only(image: Image.Image, shown: tuple[int, int, int, int] | None) -> Image.Image:
    """Leave white what the first picture of a GIF does not cover."""
    if shown in (None, (0, 0, *image.size)):
        return image
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image.crop(shown), shown)
    return flat
