"""Decoding for a network: by simplejpeg where it gives the same pixels, by Pillow for everything else."""

import io

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from PIL import Image
from torchvision.transforms import v2

from rootstock.config.architectures import Transform
from rootstock.images import decoding, pixels
from rootstock.images.decoding import decode, resize_and_crop
from tests.images import encoded, picture

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TURNED = Image.Exif()
TURNED[0x0112] = 6


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Draw smooth colours with some detail, as a camera sees them."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray((np.asarray(small) + grain).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90} | options)
    return file.getvalue()


def seen(data: bytes, shorter: int | None = None) -> np.ndarray:
    return decode(data, shorter).permute(1, 2, 0).numpy().astype(int)


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(pixels.decode(data)).astype(int)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 30}]
)
def test_a_jpeg_has_the_same_pixels_as_by_pillow(options):
    data = jpeg(photo(97, 61), **options)
    assert np.array_equal(seen(data), by_pillow(data))


@pytest.mark.parametrize("mode", ["L", "CMYK", "YCbCr"])
def test_a_jpeg_of_any_colour_mode_is_decoded_to_rgb(mode):
    data = jpeg(photo(60, 40).convert(mode))
    assert seen(data).shape == (40, 60, 3)
    assert np.array_equal(seen(data), by_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_decoded_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photo(60, 40), exif=exif.tobytes())
    assert np.array_equal(seen(data), by_pillow(data))


def test_an_orientation_that_is_only_in_xmp_is_applied():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    data = jpeg(photo(60, 40), xmp=xmp)
    assert seen(data).shape == (60, 40, 3)
    assert np.array_equal(seen(data), by_pillow(data))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_every_other_format_has_the_same_pixels_as_by_pillow(format):
    data = encoded(picture(0), format=format)
    assert np.array_equal(seen(data), by_pillow(data))


def test_a_truncated_jpeg_is_an_error():
    with pytest.raises(OSError, match=r"truncated|broken"):
        decode(jpeg(photo(200, 200))[:2000])


# Decoded at a fraction of its size


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size_with_similar_pixels():
    data = jpeg(photo(1600, 1200))
    whole, reduced = decode(data), decode(data, shorter=256)
    assert whole.shape == (3, 1200, 1600) and reduced.shape == (3, 300, 400)
    to = Transform(224, 256, "bilinear", MEAN, STD)
    difference = (resize_and_crop(whole, to).int() - resize_and_crop(reduced, to).int()).abs().float()
    assert 0 < difference.mean() < 3 and difference.max() < 40


def test_a_jpeg_less_than_twice_as_large_is_decoded_in_full():
    data = jpeg(photo(500, 400))
    assert np.array_equal(seen(data, shorter=256), seen(data))


def test_a_large_image_of_another_format_is_decoded_in_full():
    data = encoded(photo(1200, 1000), format="PNG")
    assert np.array_equal(seen(data, shorter=256), by_pillow(data))


# To the network's size


@given(
    width=st.integers(19, 300), height=st.integers(19, 300), size=st.integers(16, 64), more=st.integers(0, 30),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)  # fmt: skip
@example(width=19, height=69, size=16, more=1, interpolation="bicubic")  # three levels
@settings(max_examples=100, deadline=None)
def test_resizing_and_cropping_differs_from_torchvision_by_at_most_three_levels(
    width, height, size, more, interpolation
):
    image = photo(width, height, width)
    found = resize_and_crop(
        decode(encoded(image, format="PNG")), Transform(size, size + more, interpolation, MEAN, STD)
    )
    mode = {name: v2.InterpolationMode(name) for name in ("nearest", "bilinear", "bicubic", "lanczos")}[interpolation]
    expected = v2.CenterCrop(size)(v2.Resize(size + more, mode)(image))
    difference = np.abs(found.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= 3 and difference.mean() < 0.5


def test_an_extremely_long_image_is_resized_in_bounded_memory():
    strip = decode(encoded(Image.new("RGB", (30_000, 8), "red"), format="PNG"))
    assert resize_and_crop(strip, Transform(224, 256, "bilinear", MEAN, STD)).shape == (3, 224, 224)
    assert decoding.MAX_ASPECT_RATIO * 256 == 4096


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"exif": TURNED}])
def test_reduced_decoding_equals_the_draft_mode_of_pillow(mode, options):
    data = encoded(picture(3, 333, 250, mode), "JPEG", **options)
    for shorter in (30, 62, 63, 125):
        expected = pixels.open_file(data).reduced("RGB", shorter).convert("RGB")
        assert np.array_equal(decoding.decode(data, shorter).permute(1, 2, 0).numpy(), np.asarray(expected))
