"""Data augmentation: random resized crops (Szegedy et al. 2015) with horizontal flips, and RandAugment."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rootstock.config.architectures import Transform
from rootstock.config.section import Augment
from rootstock.images.decoding import INTERPOLATION

# Milder than Inception's 0.08: a pretrained network needs less, and small objects survive.
CROP_AREA = (0.6, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
# RandAugment at magnitude 9 of 30: shears in degrees, shifts as a share of the side, rotations in degrees, factors.
CHANGES, SHEAR, SHIFT, ROTATION, FACTOR = 2, 5.14, 0.136, 9.0, 0.27


@cache
def shape_and_colour() -> tuple[Callable[[Image.Image, int], Any], ...]:
    """Return the changes of RandAugment, of which each takes an image and a sign."""
    from torchvision.transforms.v2 import functional as F  # takes 1.5 s to import

    return (
        lambda image, _: image,
        lambda image, sign: F.affine(image, 0.0, [0, 0], 1.0, [sign * SHEAR, 0.0], center=[0, 0]),
        lambda image, sign: F.affine(image, 0.0, [0, 0], 1.0, [0.0, sign * SHEAR], center=[0, 0]),
        lambda image, sign: F.affine(image, 0.0, [int(sign * SHIFT * image.width), 0], 1.0, [0.0, 0.0]),
        lambda image, sign: F.affine(image, 0.0, [0, int(sign * SHIFT * image.height)], 1.0, [0.0, 0.0]),
        lambda image, sign: F.rotate(image, sign * ROTATION),
        lambda image, sign: F.adjust_brightness(image, 1 + sign * FACTOR),
        lambda image, sign: F.adjust_saturation(image, 1 + sign * FACTOR),
        lambda image, sign: F.adjust_contrast(image, 1 + sign * FACTOR),
        lambda image, sign: F.adjust_sharpness(image, 1 + sign * FACTOR),
        lambda image, _: F.posterize(image, 7),
        lambda image, _: F.solarize(image, 178.5),
        lambda image, _: F.autocontrast(image),
        lambda image, _: F.equalize(image),
    )


def random_crop(
    image: Image.Image, shape: tuple[int, int], transform: Transform, augment: Augment, seed: int
) -> NDArray[np.uint8]:
    """Return a random resized crop, flipped horizontally half of the time for crop_flip and randaugment.

    Args:
        image: the whole picture, maybe resized to another aspect ratio (`squashed`).
        shape: its true width and height, which the crop is drawn in.
        transform: what the backbone expects.
        augment: crop, crop_flip or randaugment.
        seed: equal crops for equal seeds.

    Returns:
        (size, size, 3) uint8.
    """
    rng = np.random.default_rng(seed)
    width, height = shape
    area = width * height * rng.uniform(*CROP_AREA)
    ratio = np.exp(rng.uniform(*np.log(CROP_RATIO)))
    w, h = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, min((left + w) * x, image.width), min((top + h) * y, image.height))
    crop = image.resize((transform.size, transform.size), INTERPOLATION[transform.interpolation], box=box)
    if augment != "crop" and rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augment == "randaugment":
        crop = randaugment(crop, rng)
    return np.array(crop)


def randaugment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply two random changes of shape or colour (Cubuk et al. 2020).

    Changes and their magnitudes are those of torchvision's RandAugment, which draws from torch's global generator: that
    is one for all threads, so that images would depend on their order.
    """
    for _ in range(CHANGES):
        changes = shape_and_colour()
        change, sign = changes[rng.integers(len(changes))], 1 - 2 * int(rng.integers(2))
        image = change(image, sign)
    return image


def squashed(image: Image.Image, side: int, interpolation: str) -> Image.Image:
    """Resize a whole picture to a square, from which crops are cut as from the picture itself, at less resolution."""
    return image.resize((side, side), INTERPOLATION[interpolation])
