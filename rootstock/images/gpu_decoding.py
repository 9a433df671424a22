"""Decodes batches of JPEGs on a GPU by nvJPEG and resizes them there to the network's input size.

Not measured yet: no GPU was available (docs/extraction.md). The tests run the same code on the CPU.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import io as torchvision_io

from rootstock.config.architectures import Transform
from rootstock.images import decoding, pixels
from rootstock.images.pixels import OpenedFile

log = logging.getLogger(__name__)


def views(contents: Sequence[bytes], transform: Transform, device: torch.device) -> Tensor:
    """Decode files and resize them to the network's input size, on a device.

    nvJPEG decodes RGB and grey JPEGs. The CPU decodes all other files, and the whole batch if nvJPEG fails on one.

    Args:
        contents: of n ingested files.
        transform: what the backbone expects.
        device: the GPU; the CPU in tests.

    Returns:
        (n, 3, size, size) uint8.
    """
    with torch.inference_mode():
        files = [pixels.open_file(content) for content in contents]
        there = _decoded_there([file.data if _is_simple(file) else None for file in files], device)
        upright = [
            decoding.decode_opened(file).to(device)
            if image is None
            else decoding.rotate_upright(image, file.orientation)
            for file, image in zip(files, there, strict=True)
        ]
        return torch.stack([decoding.resize_and_crop(image, transform) for image in upright])


def _decoded_there(contents: Sequence[bytes | None], device: torch.device) -> list[Tensor | None]:
    """Decode the contents that are not None on the device; all None if the device cannot."""
    encoded = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents if content]
    if not encoded:
        return [None] * len(contents)
    try:
        decoded = iter(torchvision_io.decode_jpeg(encoded, torchvision_io.ImageReadMode.RGB, device=device))
    except (RuntimeError, AttributeError) as error:
        log.debug("decoding a batch on the CPU: %s", error)
        return [None] * len(contents)
    return [next(decoded) if content else None for content in contents]


def _is_simple(file: OpenedFile) -> bool:
    return file.jpeg is not None and file.jpeg.components in (1, 3)
