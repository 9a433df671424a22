"""Image files into pixels: any file that was taken in becomes upright RGB, as a viewer would show it."""

import io
import posixpath

import numpy as np
from PIL import Image, ImageOps

# Ingest checks the size against a parameter of ours, on the header, before a pixel is decoded (rootstock/intake.py).
Image.MAX_IMAGE_PIXELS = None

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


def format_by_name(path: str) -> str | None:
    """Say which format a file's extension names, if it is one that is taken in."""
    return FORMAT_OF.get(posixpath.splitext(path)[1].lower())  # a pathlib.Path takes five times as long to make


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of an accepted file to an upright RGB image, 8 bits a channel."""
    with Image.open(io.BytesIO(data)) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image as a viewer would show it: EXIF rotation applied, transparency over white, 16 bits to 8.

    What is given is rotated, too.
    """
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # otherwise it copies what is upright already
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Map 16 bits to 8 over the whole range of the type, as viewers do; floats from 0..1, or from their own range."""
    values = np.asarray(image, dtype=np.float64)
    known = values[np.isfinite(values)]  # float files mark what was not measured by NaN: it becomes black
    least, most = (known.min(), known.max()) if known.size else (0.0, 0.0)
    if image.mode == "F":
        low, high = (0.0, 1.0) if least >= 0 and most <= 1 else (least, most)
    else:  # Pillow opens 16-bit PNG and TIFF as I;16 or I; 8-bit values in a 32-bit file stay what they are
        low, high = 0.0, 255.0 if most <= 255 and image.mode == "I" else max(65535.0, most)
    scaled = np.nan_to_num((values - low) / max(high - low, 1e-12), posinf=1, neginf=0)
    return Image.fromarray((np.clip(scaled, 0, 1) * 255).round().astype(np.uint8))
