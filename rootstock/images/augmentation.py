"""Data augmentation: random resized crops (Szegedy et al. 2015) with horizontal flips."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rootstock.config.architectures import Transform
from rootstock.config.section import Augment
from rootstock.images.decoding import INTERPOLATION

# Milder than Inception's 0.08: a pretrained network needs less, and small objects survive.
CROP_AREA = (0.6, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)


def random_crop(
    image: Image.Image, shape: tuple[int, int], transform: Transform, augment: Augment, seed: int
) -> NDArray[np.uint8]:
    """Return a random resized crop, flipped horizontally half of the time for crop_flip.

    Args:
        image: the whole picture, maybe resized to another aspect ratio (`squashed`).
        shape: its true width and height, which the crop is drawn in.
        transform: what the backbone expects.
        augment: crop or crop_flip.
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
    if augment == "crop_flip" and rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(crop)


def squashed(image: Image.Image, side: int, interpolation: str) -> Image.Image:
    """Resize a whole picture to a square, from which crops are cut as from the picture itself, at less resolution."""
    return image.resize((side, side), INTERPOLATION[interpolation])
