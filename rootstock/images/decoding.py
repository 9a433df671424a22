"""Decodes image files to tensors and resizes them to the network's input size, by simplejpeg and torch where possible.

Both steps are exact: simplejpeg gives the same bytes as Pillow (both are libjpeg-turbo), and torch's resize differs
from Pillow's in one value of a hundred, by one or two levels of 255, rarely three. Together they are twice as fast
(docs/extraction.md), and release the GIL.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from rootstock.config.architectures import Transform
from rootstock.images import jpeg, pixels
from rootstock.images.orientation import LYING
from rootstock.images.pixels import OpenedFile

Decode = Literal["full", "reduced", "gpu"]
INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
TORCH_INTERPOLATION = ("bilinear", "bicubic")  # where torch matches Pillow; the others are left to Pillow
# Images with a larger aspect ratio are cropped before resizing, which would otherwise take unbounded memory (8 x
# 1,000,000 pixels at 256: 25 GB); the network sees only the centre.
MAX_ASPECT_RATIO = 16


def decode(data: bytes, shorter: int | None = None) -> Tensor:
    """Decode the bytes of an accepted file to an upright RGB image, (3, h, w) uint8.

    Args:
        data: the file.
        shorter: length of the shorter side that suffices, in pixels: a JPEG of twice that or more is decoded at 1/2,
            1/4 or 1/8 of its size, which is faster but not exact.
    """
    return decode_opened(pixels.open_file(data), shorter)


def decode_opened(file: OpenedFile, shorter: int | None = None) -> Tensor:
    """Decode an opened file; see `decode`."""
    if file.jpeg:
        if shorter and min(file.size) >= 2 * shorter:
            return _decode_reduced(file, file.jpeg, shorter)
        if file.decoded is not None or file.jpeg.components in (1, 3):
            with suppress(ValueError):  # what libjpeg gives up on, or warns about
                stored = jpeg.decode(file.data) if file.decoded is None else file.decoded
                return upright_pixels(torch.from_numpy(stored).permute(2, 0, 1), file.orientation)
    return _tensor(file.rgb().convert("RGB"))


def upright_pixels(pixels: Tensor, orientation: int) -> Tensor:
    """Apply an orientation to pixels (..., h, w) on any device, as `orientation.upright` does to an image."""
    if orientation in LYING:
        pixels = pixels.transpose(-1, -2)
    flipped = [axis for axis, turned in ((-2, (3, 4, 7, 8)), (-1, (2, 3, 6, 7))) if orientation in turned]
    return pixels.flip(flipped) if flipped else pixels


def _decode_reduced(file: OpenedFile, header: jpeg.Header, shorter: int) -> Tensor:
    """Decode at a fraction of the size; CMYK, and what libjpeg gives up on, by Pillow."""
    if header.components in (1, 3):
        with suppress(ValueError):
            small = torch.from_numpy(jpeg.reduced(file.data, header, shorter)).permute(2, 0, 1)
            return upright_pixels(small, file.orientation)
    return _tensor(file.reduced("RGB", shorter))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resize_and_crop(image: Tensor, transform: Transform) -> Tensor:
    """Resize the shorter side and crop the centre, as torchvision's Resize and CenterCrop do.

    Args:
        image: (3, h, w) uint8.
        transform: what the backbone expects.

    Returns:
        (3, size, size) uint8.
    """
    image = crop_to_aspect_ratio(image)
    height, width = image.shape[1:]
    box = Box.of(height, width, transform)
    if box.resized != (height, width):
        image = resize(image, box.resized, transform.interpolation)
    return image[:, box.top : box.top + transform.size, box.left : box.left + transform.size]


def crop_to_aspect_ratio(image: Tensor) -> Tensor:
    """Crop the centre of a very long or very high image (3, h, w) to the largest aspect ratio that is resized."""
    height, width = image.shape[1:]
    most = MAX_ASPECT_RATIO * min(height, width)
    return crop_centre(image, min(height, most), min(width, most))


@dataclass(frozen=True, slots=True)
class Box:
    """What the network sees of an image: a square of the resized image, at (`top`, `left`)."""

    resized: tuple[int, int]  # height and width
    top: int
    left: int

    @classmethod
    def of(cls, height: int, width: int, transform: Transform) -> "Box":
        """Return the central square of an image of a height and width, as torchvision's Resize and CenterCrop do."""
        short, size = min(height, width), transform.size
        new = (int(transform.resize * height / short), int(transform.resize * width / short))  # torchvision's rounding
        new = (max(new[0], size), max(new[1], size))
        return cls(new, *(round((side - size) / 2) for side in new))


def resize(image: Tensor, new: tuple[int, int], interpolation: str) -> Tensor:
    """Resize (3, h, w) uint8 to a height and width, with antialiasing."""
    if interpolation not in TORCH_INTERPOLATION:
        picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        return _tensor(picture.resize(new[::-1], INTERPOLATION[interpolation])).to(image.device)
    if image.device.type != "cpu":  # torch has no antialiased uint8 resize on GPUs
        wide = interpolate(image[None].float(), new, mode=interpolation, antialias=True)[0]
        return wide.round().clamp(0, 255).to(torch.uint8)
    return interpolate(image[None], new, mode=interpolation, antialias=True)[0]


def crop_centre(image: Tensor, height: int, width: int) -> Tensor:
    """Crop the centre of (3, h, w)."""
    top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
    return image[:, top : top + height, left : left + width]
