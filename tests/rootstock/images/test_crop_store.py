"""Random crops from images that are kept at a larger size: the same part of the image, decoded once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from rootstock.config.architectures import Transform
from rootstock.dataset import shards
from rootstock.dataset.shards import Reader
from rootstock.images import augmentation, decoding, loader
from rootstock.images.pixel_store import CropSource, opened_for_crops
from rootstock.system.errors import ParamsError
from rootstock.training.split_images import SplitImages
from tests.small_dataset import Small

TRANSFORM = Transform(32, 36, "bilinear", (0.5,) * 3, (0.25,) * 3)
ENOUGH = 1.0  # GB


def crops_of(small: Small, root: Path, side: int = 48, most_gb: float = ENOUGH):
    return opened_for_crops(root, side, TRANSFORM, small.images, shards.names(small.images), most_gb, None)


def read(small: Small, crops: CropSource | None, seed: int = 3) -> np.ndarray:
    refs = SplitImages(small.manifest, small.images).refs(seed=seed)
    with Reader(small.images) as reader:
        sizes = loader.batch_sizes(len(refs), 16)
        return np.concatenate(
            [batch.numpy() for batch in loader.batches(reader, refs, TRANSFORM, sizes, "crop_flip", crops=crops)]
        )


def test_every_epoch_has_its_own_crops_but_images_are_decoded_once(small, monkeypatch, tmp_path):
    decoded, decode = [], decoding.decode_opened
    monkeypatch.setattr(decoding, "decode_opened", lambda *given: (decoded.append(given), decode(*given))[1])
    with crops_of(small, tmp_path) as crops:
        first, second = read(small, crops, seed=1), read(small, crops, seed=2)
    assert len(decoded) == len(small.manifest)
    assert not np.array_equal(first, second)
    with crops_of(small, tmp_path) as crops:  # in a later run
        assert np.array_equal(read(small, crops, seed=1), first)
    assert len(decoded) == len(small.manifest)


def test_crops_are_the_same_where_images_are_too_many_to_be_kept(small, tmp_path):
    with crops_of(small, tmp_path / "a") as kept, crops_of(small, tmp_path / "b", most_gb=1e-9) as not_kept:
        assert kept.store is not None
        assert not_kept.store is None
        assert np.array_equal(read(small, kept), read(small, not_kept))


def test_a_size_below_that_of_the_network_is_refused_and_none_means_exact_crops(small, tmp_path):
    with pytest.raises(ParamsError, match=r"finetune\.store_size is 31; expected 0, or at least .* 32 pixels"):
        crops_of(small, tmp_path, side=31).__enter__()
    with crops_of(small, tmp_path, side=0) as crops:
        assert crops is None


@given(width=st.integers(40, 300), height=st.integers(40, 300), seed=st.integers(0, 2**32 - 1), flip=st.booleans())
def test_a_crop_shows_the_same_part_of_the_image_as_an_exact_one(width, height, seed, flip):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([x, y, 0 * x], 2).round().astype(np.uint8))
    whole = augmentation.squashed(image, 48, "bilinear")
    augment = "crop_flip" if flip else "crop"
    exact, near = (
        augmentation.random_crop(source, image.size, TRANSFORM, augment, seed).astype(int) for source in (image, whole)
    )
    assert np.abs(exact - near).max() <= 8  # of 255: a pixel of the smaller picture is 5.3 wide
