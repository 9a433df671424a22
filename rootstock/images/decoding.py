"""Image files into tensors, and tensors to the size a network sees: torchvision's decoder and resize where they serve.

Both are exact: torchvision's JPEG decoder gives the same bytes as Pillow's (both are libjpeg-turbo), and its resize
differs from Pillow's by at most two levels of 255, in one value of a hundred. Together they are twice as fast
(docs/extraction.md), and hold no lock that other threads wait for.
"""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import io as torchvision_io

from rootstock.config.architectures import Transform
from rootstock.images import pixels
from rootstock.images.orientation import UPRIGHT, upright_pixels
from rootstock.images.pixels import Opened

Decode = Literal["full", "reduced", "gpu"]
INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
TORCHS = ("bilinear", "bicubic")  # those that torch resizes by as Pillow does; the others are left to Pillow
# A strip longer than this times its width loses its ends before it is resized, which would take memory without bound
# (8 x 1,000,000 pixels at 256: 25 GB); the network sees the middle alone.
LONGEST = 16


def decode(data: bytes, shorter: int | None = None) -> Tensor:
    """Decode the bytes of an accepted file to an upright RGB image, (3, h, w) uint8.

    Args:
        data: the file.
        shorter: pixels of the shorter side that are enough: a JPEG of twice that or more is decoded at a half, a
            quarter or an eighth of its size, which is faster and not exact.
    """
    return decoded(pixels.opened(data), shorter)


def decoded(file: Opened, shorter: int | None = None) -> Tensor:
    """Decode a file that has been opened; see `decode`."""
    if file.jpeg:
        if shorter and min(file.size) >= 2 * shorter:
            return _tensor(file.reduced("RGB", shorter))
        exact = _torchvisions(file.data)
        if exact is not None:
            return turned(exact, file.orientation)
    return _tensor(file.rgb().convert("RGB"))


def turned(image: Tensor, held: int) -> Tensor:
    """Turn (3, h, w) upright, by the one reading of how it was held (rootstock/images/orientation.py)."""
    if held == UPRIGHT:
        return image
    if image.device.type != "cpu":
        return turned(image.cpu(), held).to(image.device)
    return torch.from_numpy(np.ascontiguousarray(upright_pixels(image.numpy(), held)))


def _torchvisions(data: bytes) -> Tensor | None:
    """Decode grey and RGB as stored; None for what Pillow knows better (CMYK), or can say better what is wrong with."""
    decode_jpeg = getattr(torchvision_io, "decode_jpeg", None)  # deprecated in 0.29; when it goes, Pillow is slower
    if decode_jpeg is None:
        return None
    content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        found: Tensor = decode_jpeg(content, torchvision_io.ImageReadMode.UNCHANGED, apply_exif_orientation=False)
    except RuntimeError:
        return None
    channels: int = found.shape[0]
    return found.expand(3, -1, -1) if channels == 1 else found if channels == 3 else None


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def central(image: Tensor, transform: Transform) -> Tensor:
    """Resize the shorter side, and cut out the middle, as torchvision's Resize and CenterCrop do.

    Args:
        image: (3, h, w) uint8.
        transform: what the backbone expects.

    Returns:
        (3, size, size) uint8.
    """
    height, width = image.shape[1:]
    short = min(height, width)
    if max(height, width) > LONGEST * short:
        image = middle(image, min(height, LONGEST * short), min(width, LONGEST * short))
        height, width = image.shape[1:]
    new = (int(transform.resize * height / short), int(transform.resize * width / short))  # as torchvision
    new = (max(new[0], transform.size), max(new[1], transform.size))
    if new != (height, width):
        image = resized(image, new, transform.interpolation)
    return middle(image, transform.size, transform.size)


def resized(image: Tensor, new: tuple[int, int], interpolation: str) -> Tensor:
    """Resize (3, h, w) uint8 to a height and width, with antialiasing."""
    if interpolation not in TORCHS:
        picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        return _tensor(picture.resize(new[::-1], INTERPOLATION[interpolation])).to(image.device)
    if image.device.type != "cpu":  # a GPU has no antialiased resize of bytes
        wide = interpolate(image[None].float(), new, mode=interpolation, antialias=True)[0]
        return wide.round().clamp(0, 255).to(torch.uint8)
    return interpolate(image[None], new, mode=interpolation, antialias=True)[0]


def middle(image: Tensor, height: int, width: int) -> Tensor:
    """Cut the middle out of (3, h, w)."""
    top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
    return image[:, top : top + height, left : left + width]
