"""Thumbnails are small, whole, and made of large photos without decoding all of their pixels."""

import io

import numpy as np
from PIL import Image

from rootstock.evaluation import thumbnails
from rootstock.images import jpeg
from tests.small_dataset import ingested


def test_a_large_photo_is_decoded_at_a_fraction_of_its_size_and_looks_the_same(tmp_path, monkeypatch):
    drawn_as = {}
    for number in range(20):
        blocks = np.random.default_rng(number).integers(0, 256, (4, 8, 3), np.uint8)
        drawn_as[f"{number}.jpg"] = photo = Image.fromarray(blocks.repeat(200, 0).repeat(200, 1))
        (tmp_path / "photos" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg", quality=95)
    whole, decoded = jpeg.reduced, []

    def reduced(data, header, shorter):
        decoded.append(whole(data, header, shorter).shape)
        return whole(data, header, shorter)

    monkeypatch.setattr(jpeg, "reduced", reduced)
    small = ingested(tmp_path, (tmp_path / "photos", "field"), shard_mb=1)
    rows = small.manifest
    decoded.clear()
    found = list(thumbnails.of_images(small.images, rows))
    assert len(found) == len(rows) and {shape[:2] for shape in decoded} == {(200, 400)}
    for path, thumbnail in zip(rows["path"], found, strict=True):
        with Image.open(io.BytesIO(thumbnail)) as drawn:
            assert drawn.size == (160, 80)
            expected = np.asarray(drawn_as[path.split("/")[-1]].resize(drawn.size), int)
            assert np.abs(np.asarray(drawn.convert("RGB"), int) - expected).mean() < 12
    sprite, columns = thumbnails.sprite(small.images, rows, 48)
    with Image.open(io.BytesIO(sprite)) as drawn:
        assert drawn.size == (48 * columns, 48 * -(-len(rows) // columns))


def test_pictures_stay_within_a_budget():
    assert list(thumbnails.within([b"ab", b"cd", b"ef"], 5)) == [b"ab", b"cd"]


def test_a_tiny_image_is_enlarged_by_a_whole_number_and_a_sprite_of_noise_gets_a_lower_quality(monkeypatch):
    assert thumbnails.contained(Image.new("RGB", (8, 4)), 44).size == (40, 20)
    sheet = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    sizes = [len(thumbnails.encoded(sheet, quality)) for quality in (thumbnails.QUALITY, *thumbnails.LOWER)]
    assert sizes == sorted(sizes, reverse=True)
