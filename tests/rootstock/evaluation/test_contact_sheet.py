"""The contact sheet shows every class, and the same images every time."""

import io

import pandas as pd
import pytest
from PIL import Image

from rootstock.evaluation.contact_sheet import COLUMNS, MAX_IMAGES, choose, draw, sheet
from tests.small_dataset import CLASSES, small_dataset


def manifest(**images_of: int) -> pd.DataFrame:
    labels = [label for label, count in images_of.items() for _ in range(count)]
    classes = list(images_of)
    return pd.DataFrame({"label": labels, "class_index": [classes.index(label) for label in labels], "domain": "field"})


def test_every_class_is_shown_however_unequal_their_sizes():
    chosen = choose(manifest(common=1000, rare=1, scarce=2))["label"].value_counts()
    assert dict(chosen) == {"common": MAX_IMAGES - 3, "scarce": 2, "rare": 1}


def test_classes_of_equal_size_get_equally_many_images():
    assert set(choose(manifest(a=50, b=50, c=50, d=50))["label"].value_counts()) == {MAX_IMAGES // 4}


def test_the_number_of_images_is_limited_even_if_there_are_more_classes():
    assert len(choose(manifest(**{f"c{number}": 2 for number in range(3 * MAX_IMAGES)}))) == MAX_IMAGES


@pytest.mark.parametrize("count", [1, COLUMNS, COLUMNS + 1])
def test_the_sheet_is_as_large_as_its_images_need(count):
    picture = Image.open(
        io.BytesIO(sheet([(Image.new("RGB", (300, 100), "red"), "a name that is much too long")] * count))
    )
    assert picture.width == pytest.approx(8 + 104 * min(count, COLUMNS))
    assert picture.height == 8 + 122 * (1 if count <= COLUMNS else 2)
    assert picture.convert("RGB").getpixel((8 + 48, 8 + 48)) == (255, 0, 0)


def test_the_sheet_is_drawn_from_the_shards_and_is_the_same_every_time(tmp_path_factory):
    data = small_dataset(tmp_path_factory.getbasetemp())
    one = draw(data.manifest, data.images)
    assert one == draw(data.manifest, data.images)
    assert set(choose(data.manifest)["label"]) == set(CLASSES)
