"""RandAugment: random changes of shape and colour, equal for equal seeds."""

import numpy as np
import pytest
from PIL import Image

from rootstock.config.architectures import Transform
from rootstock.images import augmentation
from rootstock.images.augmentation import randaugment, random_crop, shape_and_colour

TRANSFORM = Transform(32, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(30, 220, (6, 6, 3), np.uint8)).resize((48, 40), Image.Resampling.BICUBIC)


def test_an_image_is_changed_alike_for_equal_seeds_and_otherwise_for_others(photo):
    crops = [random_crop(photo, photo.size, TRANSFORM, "randaugment", seed) for seed in (1, 1, 2)]
    assert np.array_equal(crops[0], crops[1]) and not np.array_equal(crops[0], crops[2])
    assert crops[0].shape == (32, 32, 3) and crops[0].dtype == np.uint8
    plain = random_crop(photo, photo.size, TRANSFORM, "crop_flip", 1)
    assert not np.array_equal(plain, crops[0])


@pytest.mark.parametrize("number", range(len(shape_and_colour())))
def test_each_change_is_the_one_of_torchvision_at_magnitude_9(photo, number):
    from torchvision.transforms import v2

    theirs = v2.RandAugment(magnitude=9)
    names = list(theirs._AUGMENTATION_SPACE)
    magnitudes, signed = theirs._AUGMENTATION_SPACE[names[number]]
    values = magnitudes(31, photo.height, photo.width)
    for sign in (1, -1) if signed else (1,):
        magnitude = 0.0 if values is None else sign * float(values[9])
        expected = theirs._apply_image_or_video_transform(
            photo, names[number], magnitude, theirs.interpolation, theirs._fill
        )
        found = np.asarray(shape_and_colour()[number](photo, sign), int)
        assert found.shape == (40, 48, 3)
        assert np.array_equal(found, np.asarray(expected, int))


def test_two_changes_are_drawn_and_each_as_often_as_any_other(photo, monkeypatch):
    drawn = []
    changes = tuple(
        lambda image, sign, n=n: (drawn.append((n, sign)), image)[1] for n in range(len(shape_and_colour()))
    )
    monkeypatch.setattr(augmentation, "shape_and_colour", lambda: changes)
    rng = np.random.default_rng(3)
    for _ in range(1000):
        randaugment(photo, rng)
    assert len(drawn) == 2000
    counts = np.bincount([n for n, _ in drawn], minlength=len(changes))
    assert (np.abs(counts - 2000 / len(changes)) < 4 * (2000 / len(changes)) ** 0.5).all()
    assert abs(np.mean([sign for _, sign in drawn])) < 0.1
