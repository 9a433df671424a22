"""JPEGs decoded on a GPU by nvJPEG, a batch at a time, and brought to the network's size there.

Not measured yet: no GPU was at hand (docs/extraction.md). The tests go the same way on the processor.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import io as torchvision_io

from rootstock.config.architectures import Transform
from rootstock.images import decoding, pixels
from rootstock.images.pixels import Opened

log = logging.getLogger(__name__)


def views(contents: Sequence[bytes], transform: Transform, device: torch.device) -> Tensor:
    """Decode files and bring them to the network's size, on a device.

    nvJPEG takes JPEGs in RGB or grey; the processor decodes the others, and all of a batch of which nvJPEG does not
    know one.

    Args:
        contents: n files, as they were taken in.
        transform: what the backbone expects.
        device: the GPU; the processor, for a test.

    Returns:
        (n, 3, size, size) uint8.
    """
    with torch.inference_mode():
        files = [pixels.opened(content) for content in contents]
        there = _decoded_there([file.data if _is_simple(file) else None for file in files], device)
        upright = [
            decoding.decoded(file).to(device) if image is None else decoding.turned(image, file.orientation)
            for file, image in zip(files, there, strict=True)
        ]
        return torch.stack([decoding.central(image, transform) for image in upright])


def _decoded_there(contents: Sequence[bytes | None], device: torch.device) -> list[Tensor | None]:
    """Decode what is not None on the device; all None where the device cannot."""
    encoded = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents if content]
    if not encoded:
        return [None] * len(contents)
    try:
        decoded = iter(torchvision_io.decode_jpeg(encoded, torchvision_io.ImageReadMode.RGB, device=device))
    except (RuntimeError, AttributeError) as error:
        log.debug("a batch is decoded on the processor: %s", error)
        return [None] * len(contents)
    return [next(decoded) if content else None for content in contents]


def _is_simple(file: Opened) -> bool:
    return file.jpeg is not None and file.jpeg.components in (1, 3)
