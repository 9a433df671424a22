"""Decodes batches of JPEGs on a GPU by nvJPEG and resizes them there to the network's input size.

The tests run the same code on the CPU.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from rootstock.config.architectures import Transform
from rootstock.images import decoding
from rootstock.images.decoding import TORCH_INTERPOLATION, Box
from rootstock.images.pixels import OpenedFile
from rootstock.system.parallel import grouped

log = logging.getLogger(__name__)
DECODED_BYTES = 2**30  # decoded pixels on the GPU at a time, at full size
AT_ONCE = 2  # batches: nvJPEG reads the files of one while the other is decoded
warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # nobody writes to a file's bytes


def can_decode(file: OpenedFile) -> bool:
    """Whether nvJPEG may decode a file: an RGB or grey JPEG."""
    return file.jpeg is not None and file.jpeg.components in (1, 3)


def views(files: Sequence[OpenedFile], transform: Transform, device: torch.device) -> Tensor:
    """Decode files and resize them to the network's input size, on a device.

    The CPU decodes what nvJPEG fails on.

    Args:
        files: n that `can_decode` accepts.
        transform: what the backbone expects.
        device: the GPU; the CPU in tests.

    Returns:
        (n, 3, size, size) uint8, computed when this returns, whatever the stream.
    """
    parts = grouped(files, DECODED_BYTES, lambda file: 3 * file.stored[0] * file.stored[1])
    with torch.inference_mode(), _own_stream(device):
        seen = [_views(part, transform, device) for part in parts]
        whole = seen[0] if len(seen) == 1 else torch.cat(seen)
        _wait(device)
        return whole


def _views(files: Sequence[OpenedFile], transform: Transform, device: torch.device) -> Tensor:
    decoded = _decoded([torch.frombuffer(file.data, dtype=torch.uint8) for file in files], device)
    upright = [
        decoding.decode_opened(file).to(device) if image is None else decoding.upright_pixels(image, file.orientation)
        for file, image in zip(files, decoded, strict=True)
    ]
    seen = _resized(upright, transform)
    _wait(device)  # nvJPEG, on a stream of torchvision's, reuses the memory of what it has decoded
    return seen


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _decoded(encoded: list[Tensor], device: torch.device) -> list[Tensor | None]:
    """Decode JPEGs on the device; None for those that it cannot decode."""
    try:
        found: list[Tensor | None] = decode_jpegs(encoded, device)
    except (RuntimeError, AttributeError) as error:
        if len(encoded) == 1:
            log.debug("decoding an image on the CPU: %s", error)
            return [None]
        return [image for one in encoded for image in _decoded([one], device)]  # the others are none the worse for it
    return found


def decode_jpegs(encoded: list[Tensor], device: torch.device) -> Any:  # noqa: ANN401
    """Decode JPEGs on a device, each (3, h, w) uint8; an AttributeError where torchvision no longer does it (0.29)."""
    from torchvision import io  # takes 1.5 s, and decodes for GPUs alone

    return io.decode_jpeg(encoded, io.ImageReadMode.RGB, device=device)


def _resized(images: list[Tensor], transform: Transform) -> Tensor:
    if not images[0].is_cuda or transform.interpolation not in TORCH_INTERPOLATION or not _has_triton():
        return torch.stack([decoding.resize_and_crop(image, transform) for image in images])
    from rootstock.images import gpu_resize  # imports Triton

    placed = [decoding.crop_to_aspect_ratio(image).contiguous() for image in images]
    boxes = [Box.of(image.shape[1], image.shape[2], transform) for image in placed]
    return gpu_resize.resize_and_crop(placed, boxes, transform.size, transform.interpolation)


@cache
def _has_triton() -> bool:
    """Whether Triton is installed, as it is with torch for CUDA on Linux."""
    try:
        import triton  # noqa: F401
    except ImportError:
        log.info("Triton is not installed: images that the GPU has decoded are resized one by one")
        return False
    return True


@contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """Use a stream beside the one that the network computes on, as soon as one is free."""
    if device.type != "cuda":
        yield
        return
    streams = _streams(device)
    stream = streams.get()
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        streams.put(stream)


@cache
def _streams(device: torch.device) -> "SimpleQueue[torch.cuda.Stream]":
    streams: SimpleQueue[torch.cuda.Stream] = SimpleQueue()
    for _ in range(AT_ONCE):
        streams.put(torch.cuda.Stream(device))
    return streams
