"""Image files into pixels: what is checked of a new file, and how any accepted file becomes upright RGB."""

import hashlib
import io
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rootstock.duplicates import perceptual_hash

# The limit is a parameter of ours, checked on the header before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

MAX_FILE_BYTES = 512 * 2**20  # no photograph is larger; an archive member that says so is not read

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


class Reason(StrEnum):
    """Why a file is not in the manifest: the closed list of rejected.parquet."""

    UNDECODABLE = "undecodable"
    TRUNCATED = "truncated"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    NOT_AN_IMAGE = "not_an_image"
    WRONG_EXTENSION = "wrong_extension"
    UNREADABLE = "unreadable"
    UNSAFE_PATH = "unsafe_path"
    NO_LABEL = "no_label"
    CONFLICTING_LABEL = "conflicting_label"
    DUPLICATE = "duplicate"
    STRADDLES_SPLITS = "straddles_splits"


class Rejected(Exception):  # noqa: N818 - it is a verdict on a file, not a fault of the program
    """A file that is not taken in, and why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Checks:
    """What a new file has to satisfy, and the size it is stored at."""

    min_side: int
    max_megapixels: float
    max_side: int | None
    accept_wrong_extension: bool


@dataclass(frozen=True, slots=True)
class NewImage:
    """A checked file, ready to be packed; `width` and `height` are those of the upright image."""

    image_id: str
    data: bytes
    format: str
    width: int
    height: int
    phash: int


def image_id(data: bytes) -> str:
    """Name an image after the bytes of its file."""
    return hashlib.sha256(data).hexdigest()


def check(data: bytes, path: str, checks: Checks) -> NewImage:
    """Decode a new file once: is it whole, of a sensible size, what its name says; how does it look.

    Args:
        data: the bytes of the file.
        path: its name, for the extension.
        checks: what to hold it to.

    Raises:
        Rejected: with the reason.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=list(EXTENSIONS) + ["MPO"])
    except UnidentifiedImageError:
        named = PurePosixPath(path).suffix.lower() in FORMAT_OF
        raise Rejected(Reason.UNDECODABLE if named and data else Reason.NOT_AN_IMAGE) from None
    except Exception as error:  # Pillow's plug-ins raise whatever the parser met
        raise Rejected(_why(error)) from None
    with image:
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        _check_header(image, kind, path, checks)
        try:
            if not checks.max_side or max(image.size) <= checks.max_side:
                return _as_it_is(image, data, kind)
            return _scaled_down(image, data, kind, checks.max_side)
        except Exception as error:
            raise Rejected(_why(error)) from None


def _check_header(image: Image.Image, kind: str, path: str, checks: Checks) -> None:
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in FORMAT_OF and FORMAT_OF[suffix] != kind and not checks.accept_wrong_extension:
        raise Rejected(Reason.WRONG_EXTENSION)
    if image.width * image.height > checks.max_megapixels * 1e6:
        raise Rejected(Reason.TOO_LARGE)
    if min(image.size) < checks.min_side:
        raise Rejected(Reason.TOO_SMALL)


def _as_it_is(image: Image.Image, data: bytes, kind: str) -> NewImage:
    upright = _upright_size(image)
    # The hash looks at 32x32 grey pixels: a JPEG decoded at a fraction of its size shows them as well, and its
    # whole stream is still read, so that a truncated one is found.
    image.draft("L", (64, 64))
    return NewImage(image_id(data), data, kind, *upright, perceptual_hash(to_rgb(image)))


def _scaled_down(image: Image.Image, data: bytes, kind: str, max_side: int) -> NewImage:
    image.draft("RGB", (max_side, max_side))
    small = to_rgb(image)
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    stored = io.BytesIO()
    if kind == "JPEG":
        small.save(stored, "JPEG", quality=95)
    else:
        kind = "PNG"
        small.save(stored, "PNG")
    # The name stays that of the file that came in: it is how the file is known again, here and in another clone.
    return NewImage(image_id(data), stored.getvalue(), kind, *small.size, perceptual_hash(small))


def _upright_size(image: Image.Image) -> tuple[int, int]:
    orientation = image.getexif().get(0x0112, 1)
    return (image.height, image.width) if orientation in (5, 6, 7, 8) else (image.width, image.height)


def _why(error: Exception) -> Reason:
    said = str(error).lower()
    cut = (
        "truncated",
        "eof",
        "unexpected end",
        "not processed",
        "broken png",
        "unrecognized data stream",
        "not enough",
    )
    if isinstance(error, EOFError) or any(word in said for word in cut):
        return Reason.TRUNCATED
    return Reason.UNDECODABLE


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of an accepted file to an upright RGB image, 8 bits a channel."""
    with Image.open(io.BytesIO(data)) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image as a viewer would show it: EXIF rotation applied, transparency over white, 16 bits to 8."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGB", "L", "CMYK", "YCbCr", "LAB", "HSV", "1"):
        return image.convert("RGB")
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Map 16 bits to 8 over the whole range of the type, as viewers do; floats from 0..1, or from their own range."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        low, high = (0.0, 1.0) if 0 <= values.min() and values.max() <= 1 else (values.min(), values.max())
    else:  # Pillow opens 16-bit PNG and TIFF as I;16 or I; 8-bit values in a 32-bit file stay what they are
        low, high = 0.0, 255.0 if values.max() <= 255 and image.mode == "I" else 65535.0
    scaled = (values - low) / max(high - low, 1e-12)
    return Image.fromarray((np.clip(scaled, 0, 1) * 255).round().astype(np.uint8), "L")


def thumbnail(image: Image.Image, side: int) -> bytes:
    """Draw an image small, as PNG: at most `side` pixels, and tiny ones enlarged to be seen."""
    scale = side / max(image.size)
    if scale < 1:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    elif scale > 2:
        times = int(scale)
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    drawn = io.BytesIO()
    image.save(drawn, "PNG")
    return drawn.getvalue()
