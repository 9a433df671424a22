"""JPEGs decoded on a GPU by nvJPEG, a batch at a time, and brought to the network's size there.

Not measured yet: no GPU was at hand (docs/extraction.md). The tests go the same way on the processor.
"""

import io
import logging
from collections.abc import Sequence

import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision import io as torchvision_io

from rootstock import decoding
from rootstock.architectures import Transform

log = logging.getLogger(__name__)


def views(contents: Sequence[bytes], transform: Transform, device: torch.device) -> Tensor:
    """Decode files and bring them to the network's size, on a device.

    nvJPEG takes JPEGs in RGB or grey that stand upright; the processor decodes the others, and all of a batch of which
    nvJPEG does not know one.

    Args:
        contents: n files, as they were taken in.
        transform: what the backbone expects.
        device: the GPU; the processor, for a test.

    Returns:
        (n, 3, size, size) uint8.
    """
    with torch.inference_mode():
        there = _decoded_there([content if _is_simple(content) else None for content in contents], device)
        images = [
            decoding.decode(content).to(device) if image is None else image
            for content, image in zip(contents, there, strict=True)
        ]
        return torch.stack([decoding.central(image, transform) for image in images])


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


def _is_simple(content: bytes) -> bool:
    if not content.startswith(decoding.JPEG):
        return False
    with Image.open(io.BytesIO(content)) as image:
        return image.mode in ("RGB", "L") and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
