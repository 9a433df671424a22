"""Resizes and crops a batch of images of different sizes on a GPU: one Triton kernel, a program per row of an output.

The antialiased filters are those of Pillow and of torch's `interpolate(antialias=True)`, computed in
float32, rounded to levels between the horizontal and the vertical pass as Pillow does. A kernel
launch for each image and step (float, resize, round, crop) would take longer than the resizing itself.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from rootstock.images.decoding import Box

HALF_WIDTH = {"bilinear": 1, "bicubic": 2}  # of a filter, in input pixels of an image that is not made smaller


def resize_and_crop(images: Sequence[Tensor], boxes: Sequence[Box], size: int, interpolation: str) -> Tensor:
    """Resize images to a size of their own, and cut the same square out of each.

    Args:
        images: n of (3, h, w) uint8, contiguous, on one GPU.
        boxes: the size to which each is resized, and where the square lies in it.
        size: of the square, in pixels.
        interpolation: bilinear or bicubic.

    Returns:
        (n, 3, size, size) uint8, channels last in memory.
    """
    device = images[0].device
    out = torch.empty((len(images), size, size, 3), dtype=torch.uint8, device=device)
    addresses = torch.tensor([image.data_ptr() for image in images], device=device)
    sizes = np.array([image.shape[1:] for image in images], np.float32)
    corners = np.array([(box.top, box.left) for box in boxes], np.float32)
    resized = np.array([box.resized for box in boxes], np.float32)
    # Height and width of an image, top and left of the square, and by how much it is made smaller.
    places = torch.from_numpy(np.concatenate([sizes, corners, sizes / resized], 1)).to(device)
    _resize[(len(images), size)](
        addresses, places, out, size,
        half_width=HALF_WIDTH[interpolation], block=triton.next_power_of_2(size),
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


@triton.jit
def _weight(distance, half_width: tl.constexpr):
    """Return the triangle's or the cubic filter's (a = -0.5, as Pillow's) value at a distance from its centre."""
    t = tl.abs(distance)
    if half_width == 1:
        return tl.maximum(1.0 - t, 0.0)
    near = (1.5 * t - 2.5) * t * t + 1.0
    far = ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0
    return tl.where(t < 1.0, near, tl.where(t < 2.0, far, 0.0))


@triton.jit
def _resize(addresses, places, out, size, half_width: tl.constexpr, block: tl.constexpr):
    image, row = tl.program_id(0), tl.program_id(1)
    pixels = tl.load(addresses + image).to(tl.pointer_type(tl.uint8))
    place = places + 6 * image
    height, width = tl.load(place).to(tl.int32), tl.load(place + 1).to(tl.int32)
    top, left = tl.load(place + 2), tl.load(place + 3)
    scale_y, scale_x = tl.load(place + 4), tl.load(place + 5)
    column = tl.arange(0, block)
    stretch_y, stretch_x = tl.maximum(scale_y, 1.0), tl.maximum(scale_x, 1.0)
    centre_y = (row + top + 0.5) * scale_y
    centre_x = (column + left + 0.5) * scale_x
    first_y = tl.maximum((centre_y - half_width * stretch_y + 0.5).to(tl.int32), 0)
    end_y = tl.minimum((centre_y + half_width * stretch_y + 0.5).to(tl.int32), height)
    first_x = tl.maximum((centre_x - half_width * stretch_x + 0.5).to(tl.int32), 0)
    end_x = tl.minimum((centre_x + half_width * stretch_x + 0.5).to(tl.int32), width)
    inside = column < size
    most = tl.max(tl.where(inside, end_x - first_x, 0))
    red = tl.zeros([block], tl.float32)
    green = tl.zeros([block], tl.float32)
    blue = tl.zeros([block], tl.float32)
    total_y = 0.0
    for y in range(first_y, end_y):
        red_x = tl.zeros([block], tl.float32)
        green_x = tl.zeros([block], tl.float32)
        blue_x = tl.zeros([block], tl.float32)
        total_x = tl.zeros([block], tl.float32)
        for step in range(most):
            x = first_x + step
            there = inside & (x < end_x)
            weight_x = tl.where(there, _weight((x - centre_x + 0.5) / stretch_x, half_width), 0.0)
            at = pixels + y * width + x
            red_x += weight_x * tl.load(at, there, 0).to(tl.float32)
            green_x += weight_x * tl.load(at + height * width, there, 0).to(tl.float32)
            blue_x += weight_x * tl.load(at + 2 * height * width, there, 0).to(tl.float32)
            total_x += weight_x
        weight_y = _weight((y - centre_y + 0.5) / stretch_y, half_width)
        total_y += weight_y
        red += weight_y * _level(red_x / total_x)
        green += weight_y * _level(green_x / total_x)
        blue += weight_y * _level(blue_x / total_x)
    to = out + ((image * size + row) * size + column) * 3
    tl.store(to, _level(red / total_y).to(tl.uint8), inside)
    tl.store(to + 1, _level(green / total_y).to(tl.uint8), inside)
    tl.store(to + 2, _level(blue / total_y).to(tl.uint8), inside)


@triton.jit
def _level(value):
    """Round to the nearest level 0..255, as Pillow does after each of its two passes."""
    return tl.floor(tl.minimum(tl.maximum(value, 0.0), 255.0) + 0.5)
