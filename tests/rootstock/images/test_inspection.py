"""Checks of a new file: the reasons for rejecting it, and what is stored where large images are downscaled."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageFile

from rootstock.images import inspection, pixels
from rootstock.images.inspection import Reason, Rejected
from rootstock.images.orientation import TAG
from tests.image_checks import CHECKS, assert_alike, check, pixels_of, png_by_hand, why_not
from tests.images import encoded, picture

# Rejected


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"format": "JPEG"}),
        ("a.jpg", {"format": "JPEG", "progressive": True}),
        ("a.png", {"format": "PNG"}),
        ("a.webp", {"format": "WEBP"}),
        ("a.webp", {"format": "WEBP", "lossless": True}),
        ("a.bmp", {"format": "BMP"}),
        ("a.tif", {"format": "TIFF"}),
        ("a.tif", {"format": "TIFF", "compression": "tiff_lzw"}),
        ("a.gif", {"format": "GIF"}),
        ("a.ppm", {"format": "PPM"}),
    ],
)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_a_file_that_was_cut_is_truncated(name, options, share):
    data = encoded(picture(13, 90, 60), **options)
    assert why_not(data[: int(len(data) * share)], name) is Reason.TRUNCATED


def test_random_bytes_with_the_name_of_an_image_are_undecodable():
    assert why_not(np.random.default_rng(0).bytes(5000), "ants/1.jpg") is Reason.UNDECODABLE


def test_text_with_the_name_of_an_image_is_undecodable():
    assert why_not(b"<html>404 Not Found</html>", "ants/1.jpg") is Reason.UNDECODABLE


def test_text_without_an_extension_is_not_an_image():
    assert why_not(b"See the licence.", "ants/LICENSE") is Reason.NOT_AN_IMAGE


def test_an_empty_file_is_not_an_image():
    assert why_not(b"", "ants/1.jpg") is Reason.NOT_AN_IMAGE


def test_an_image_with_overwritten_bytes_is_damaged():
    data = bytearray(encoded(picture(14, 90, 60)))
    data[60:90] = bytes(30)
    assert why_not(bytes(data), "a.png") is Reason.DAMAGED


def test_a_png_named_jpg_is_rejected_unless_wrong_extensions_are_accepted():
    data = encoded(picture(15))
    assert why_not(data, "ants/1.jpg") is Reason.WRONG_EXTENSION
    assert check(data, "ants/1.jpg", accept_wrong_extension=True).format == "PNG"


def test_an_image_with_a_short_side_is_too_small():
    data = encoded(picture(16, 200, 20))
    assert why_not(data, "a.png", min_side=21) is Reason.TOO_SMALL
    assert check(data, "a.png", min_side=20).height == 20


def test_a_decompression_bomb_is_rejected_by_its_header():
    bomb = png_by_hand(30_000, 30_000, 8, 2, b"never looked at")
    assert why_not(bomb, "a.png") is Reason.TOO_LARGE
    assert why_not(bomb, "a.png", max_megapixels=1000) is not Reason.TOO_LARGE


def test_a_known_image_with_a_wrong_extension_is_rejected_by_its_header_alone():
    data = encoded(picture(17))
    inspection.check_header(data, "a.png", CHECKS)
    with pytest.raises(Rejected) as rejected:
        inspection.check_header(data, "a.jpg", CHECKS)
    assert rejected.value.reason is Reason.WRONG_EXTENSION


@given(st.binary(max_size=200), st.sampled_from(["a.png", "a.jpg", "a.gif", "a.tif", "a"]))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_always_rejected(data, path):
    with pytest.raises(Rejected):
        check(data, path)


WHOLE = {
    format: encoded(picture(18, 40, 24), format) for format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 1), st.binary(min_size=1, max_size=4), st.integers(0, 2000))
@settings(max_examples=400, deadline=None)
def test_every_accepted_image_can_be_decoded(format, where, wrong, cut):
    data = bytearray(WHOLE[format])
    at = int(where * (len(data) - 1))
    data[at : at + len(wrong)] = wrong
    damaged = bytes(data[: len(data) - cut] if cut < len(data) else data)
    try:
        new = check(damaged, "a", max_megapixels=1)
    except Rejected:
        return
    assert pixels.decode(new.data).size == (new.width, new.height)


# Downscaled


@pytest.mark.parametrize(("size", "stored"), [((640, 480), (100, 75)), ((480, 640), (75, 100)), ((100, 90), (100, 90))])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_larger_images_are_downscaled_to_max_side(format, size, stored):
    image = picture(19, *size)
    data = encoded(image, format)
    new = check(data, "a", max_side=100)
    assert (new.width, new.height) == pixels.decode(new.data).size == stored
    assert new.format == format
    assert new.image_id == inspection.image_id(data)  # the name is that of the file that came in
    assert (new.data == data) == (size == stored)
    assert_alike(pixels_of(new.data), image.resize(stored, Image.Resampling.LANCZOS), 4)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_rotated_photo_is_stored_upright_when_downscaled(format):
    seen = picture(20, 300, 200)
    exif = Image.Exif()
    exif[TAG] = 6
    new = check(encoded(seen.rotate(90, expand=True), format, exif=exif), "a", max_side=150)
    assert (new.width, new.height) == pixels.decode(new.data).size == (150, 100)
    assert_alike(pixels_of(new.data), seen.resize((150, 100), Image.Resampling.LANCZOS), 4)


def test_transparent_16_bit_and_cmyk_images_keep_their_colours_when_downscaled():
    clear = Image.new("RGBA", (64, 64), (200, 0, 100, 128))
    assert np.abs(pixels_of(check(encoded(clear), "a.png", max_side=32).data) - (227, 127, 177)).max() <= 1
    deep = Image.fromarray(np.full((64, 64), 100 * 257, np.uint16))
    assert (pixels_of(check(encoded(deep, "TIFF"), "a.tif", max_side=32).data) == 100).all()
    printed = encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG")
    assert np.abs(pixels_of(check(printed, "a.jpg", max_side=32).data) - (255, 0, 0)).max() <= 4


def test_a_file_for_which_memory_was_short_is_tried_again(monkeypatch):
    def short(*_: object) -> None:
        raise MemoryError

    content = encoded(picture(1))
    monkeypatch.setattr(ImageFile.ImageFile, "load", short)
    with pytest.raises(Rejected) as rejected:
        check(content, "a.png")
    assert rejected.value.reason is Reason.UNREADABLE
