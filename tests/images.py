"""Small pictures for tests, drawn from a number: the same number gives the same picture, two give two that look nothing
alike (their perceptual hashes differ in some 30 of 64 bits)."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, width: int = 32, height: int = 32, mode: str = "RGB") -> Image.Image:
    """Draw soft coloured patches."""
    patches = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def nearly(image: Image.Image, which: int = 0) -> Image.Image:
    """Copy a picture with one pixel changed: other bytes, the same look."""
    copy = image.copy()
    red, *rest = copy.getpixel((which, 0))
    copy.putpixel((which, 0), (red ^ 1, *rest))
    return copy


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    """Return an image encoded as a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def put(path: Path, content: Image.Image | bytes | int, **options) -> Path:
    """Write a picture, one drawn from a number, or plain bytes, making the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, int):
        content = picture(content)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path, **options)
    return path


def put_classes(folder: Path, counts: dict[str, int], first: int = 0, suffix: str = ".png") -> Path:
    """Write a folder of pictures a class, no two alike: `<class>/00.png`, drawn from `first`, `first` + 1, ..."""
    for label, count in counts.items():
        for number in range(count):
            put(folder / label / f"{number:02d}{suffix}", first)
            first += 1
    return folder
