"""Paths, bytes, arrays and PIL images are classified alike; an image that cannot be read affects no other."""

import io

import numpy as np
import pytest
from hypothesis import given as drawn, strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from rootstock.model import given, model
from rootstock.model.model import Model
from tests.images import encoded, picture

PHOTO = picture(1, 90, 70)


@pytest.fixture(scope="module")
def loaded(evaluated) -> Model:
    _, folder = evaluated
    return model.load(folder / "model")


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def of(model: Model, image: object) -> dict[str, float]:
    [prediction] = model.predict(image)
    assert prediction.reason is None, prediction
    return prediction.probabilities


@pytest.mark.parametrize("kind", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16"])
def test_an_image_is_classified_as_its_file_is(loaded, tmp_path, kind):
    sixteen = Image.fromarray(np.asarray(PHOTO.convert("L"), np.uint16) * 257)
    image = sixteen if kind == "I;16" else PHOTO.convert(kind)
    path = tmp_path / ("a.tif" if kind == "CMYK" else "a.png")
    image.save(path)
    expected = of(loaded, path)
    assert of(loaded, path.read_bytes()) == pytest.approx(expected, abs=1e-6)
    assert of(loaded, image) == pytest.approx(expected, abs=1e-6)
    assert of(loaded, Image.open(path)) == pytest.approx(expected, abs=1e-6)
    if kind not in ("P", "CMYK", "LA"):  # whose arrays do not say what they are
        assert of(loaded, np.asarray(image)) == pytest.approx(expected, abs=1e-6)


def test_a_pil_image_is_turned_upright_as_its_file_is(loaded, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    PHOTO.save(tmp_path / "turned.png", exif=exif)
    assert of(loaded, Image.open(tmp_path / "turned.png")) == pytest.approx(of(loaded, tmp_path / "turned.png"))


def test_many_may_be_an_array_of_four_dimensions_or_a_list_of_anything(loaded, tmp_path):
    PHOTO.save(tmp_path / "photo.png")
    turned = [picture(number, 90, 70) for number in range(3)]
    together = loaded.predict(np.stack([np.asarray(image) for image in turned]))
    assert [one.name for one in together] == ["image 0", "image 1", "image 2"]
    assert together == loaded.predict(turned)
    mixed = loaded.predict([tmp_path / "photo.png", PHOTO, np.asarray(PHOTO), encoded(PHOTO, "PNG")])
    assert len({one.label for one in mixed}) == 1 and mixed[1].name == "image 1"
    assert loaded.predict(np.empty((0, 9, 9, 3), np.uint8)) == []


def test_a_broken_pil_image_and_an_array_without_pixels_are_rejected_and_affect_no_other(loaded):
    data = encoded(PHOTO, "PNG")
    broken = Image.open(io.BytesIO(data[: len(data) // 2]))
    got = loaded.predict([PHOTO, broken, np.empty((0, 7, 3), np.uint8), PHOTO])
    assert [one.reason for one in got] == [None, "undecodable", "too_small", None]
    assert got[0].probabilities == got[3].probabilities


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"image 1 is an array of shape \(4, 4, 2\) and dtype uint8; expected uint8 of"),
        (np.zeros((4, 4, 3)), r"shape \(4, 4, 3\) and dtype float64; expected uint8 of shape \(height, width, 3\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (None, "image 1 is of type NoneType; expected a path, the bytes of a file, an array or a PIL image"),
        (3, "image 1 is of type int"),
    ],
)
def test_what_is_no_image_is_refused_by_name(loaded, wrong, said):
    with pytest.raises(TypeError, match=said):
        loaded.predict([PHOTO, wrong])


@drawn(arrays.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))))
def test_an_array_becomes_a_file_of_the_same_pixels(array):
    assert np.array_equal(pixels(given.content(array)), array)


@drawn(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.booleans())
def test_a_grey_array_may_have_a_channel_or_none(array, channel):
    assert np.array_equal(pixels(given.content(array[..., None] if channel else array)), array)


def test_features_are_those_that_the_head_classifies(loaded, tmp_path):
    images = [picture(number, 90, 70) for number in range(3)]
    features = loaded.embed([images[0], tmp_path / "missing.png", *images[1:]])
    assert features.shape == (4, 1024) and features.dtype == np.float32
    assert np.isnan(features[1]).all() and np.isfinite(features[[0, 2, 3]]).all()
    expected = [list(one.probabilities.values()) for one in loaded.predict(images)]
    np.testing.assert_allclose(loaded.probabilities(features[[0, 2, 3]]), expected, atol=1e-5)
    assert loaded.embed([]).shape == (0, 1024) and loaded.embed(images[0]).shape == (1, 1024)
    assert np.isnan(loaded.embed(b"")).all()
