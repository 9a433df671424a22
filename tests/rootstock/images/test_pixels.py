"""Images of every format and colour mode are decoded to upright RGB, as a viewer shows them."""

import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from rootstock.images import inspection, pixels
from rootstock.images.orientation import TAG
from rootstock.images.perceptual_hash import perceptual_hashes, thumbnail
from tests.image_checks import assert_alike, check, pixels_of, png_by_hand
from tests.images import encoded, picture


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.jpg", {"format": "JPEG", "quality": 95, "subsampling": 0}, 3),
        ("a.jpeg", {"format": "JPEG", "quality": 95, "subsampling": 0, "progressive": True}, 3),
        ("a.JPG", {"format": "JPEG", "quality": 95, "subsampling": 0}, 3),
        ("a.png", {"format": "PNG"}, 0),
        ("a.webp", {"format": "WEBP", "quality": 95}, 8),
        ("a.webp", {"format": "WEBP", "lossless": True}, 0),
        ("a.bmp", {"format": "BMP"}, 0),
        ("a.tif", {"format": "TIFF"}, 0),
        ("a.tiff", {"format": "TIFF", "compression": "tiff_lzw"}, 0),
        ("a.tiff", {"format": "TIFF", "compression": "jpeg", "quality": 95}, 4),
        ("a.gif", {"format": "GIF"}, 8),
        ("a.ppm", {"format": "PPM"}, 0),
        ("a", {"format": "PNG"}, 0),
    ],
)
def test_an_image_of_each_format_is_decoded_to_its_pixels(name, options, tolerance):
    image = picture(1, 48, 32)
    data = encoded(image, **options)
    new = check(data, f"ants/{name}")
    assert (new.format, new.width, new.height, new.data) == (options["format"], 48, 32, data)
    assert new.image_id == inspection.image_id(data)
    assert_alike(pixels_of(data), image, tolerance)


@pytest.mark.parametrize("mode", ["L", "1"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM"])
def test_greyscale_and_bilevel_images_keep_their_values(mode, format):
    image = picture(2, mode=mode)
    data = encoded(image, format)
    assert (pixels_of(data) == np.asarray(image.convert("RGB"))).all()
    assert check(data, "a").format == format


def test_a_greyscale_jpeg_keeps_its_values():
    image = picture(2, mode="L")
    assert_alike(pixels_of(encoded(image, "JPEG", quality=95)), image.convert("RGB"), 2)


def test_a_palette_image_has_the_colours_of_its_palette():
    image = picture(3).quantize(64)
    assert (pixels_of(encoded(image)) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_pixels_of_a_palette_image_are_white(format):
    image = Image.new("P", (16, 16), 0)
    image.putpalette([200, 0, 0, 0, 90, 0])
    image.paste(1, (0, 0, 8, 16))
    pixels = pixels_of(encoded(image, format, transparency=1))
    assert (pixels[:, :8] == 255).all()
    assert (pixels[:, 8:] == [200, 0, 0]).all()


@pytest.mark.parametrize(("mode", "clear"), [("L", 77), ("RGB", (9, 8, 7)), ("1", 0)])
def test_pixels_of_the_transparent_colour_of_a_png_are_white(mode, clear):
    image = Image.new(mode, (16, 16), clear)
    image.paste(255 if mode != "RGB" else (255, 0, 0), (0, 0, 8, 16))
    pixels = pixels_of(encoded(image, transparency=clear))
    assert (pixels[:, 8:] == 255).all()
    assert (pixels[:, :8] == (255 if mode != "RGB" else [255, 0, 0])).all()


@pytest.mark.parametrize(("mode", "colour", "over_white"), [("RGBA", (200, 0, 100, 128), (227, 127, 177)),
                                                            ("LA", (100, 64), (216, 216, 216))])  # fmt: skip
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_half_transparent_pixels_are_blended_with_white(mode, colour, over_white, format):
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    pixels = pixels_of(encoded(Image.new(mode, (16, 16), colour), format, **options))
    assert np.abs(pixels - over_white).max() <= 1


def test_a_cmyk_jpeg_has_the_colours_of_the_print():
    image = picture(4, 64, 64)
    image.paste("white", (0, 0, 32, 32))
    pixels = pixels_of(encoded(image.convert("CMYK"), "JPEG", quality=95))
    assert_alike(pixels, image, 6)
    assert pixels[:24, :24].min() > 245  # not inverted


def test_a_cmyk_tiff_has_the_colours_of_the_print():
    image = picture(4)
    assert (pixels_of(encoded(image.convert("CMYK"), "TIFF")) == np.asarray(image)).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_greyscale_becomes_8_bit(format):
    grey = np.asarray(picture(5, mode="L"))
    data = encoded(Image.fromarray(grey.astype(np.uint16) * 257), format)
    assert (pixels_of(data) == grey[..., None]).all()
    assert (pixels_of(check(data, "a").data) == grey[..., None]).all()


def test_a_16_bit_tiff_may_be_big_endian():
    grey = np.asarray(picture(5, mode="L"))
    big = Image.frombytes("I;16B", (32, 32), (grey.astype(">u2") * 257).tobytes())
    assert (pixels_of(encoded(big, "TIFF")) == grey[..., None]).all()


def test_a_16_bit_colour_png_becomes_8_bit():
    colours = np.asarray(picture(6))
    rows = (colours.astype(">u2") * 257).tobytes()
    lines = b"".join(b"\0" + rows[at : at + 192] for at in range(0, len(rows), 192))
    assert (pixels_of(png_by_hand(32, 32, 16, 2, zlib.compress(lines))) == colours).all()


def test_a_lab_tiff_has_its_colours():
    lab = ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB")
    image = picture(8)
    assert_alike(pixels_of(encoded(ImageCms.applyTransform(image, to_lab), "TIFF")), image, 4)


def test_an_animated_gif_is_decoded_to_its_first_frame():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels_of(data) == [255, 0, 0]).all()


def test_a_phone_photo_with_a_preview_is_a_jpeg():
    image, preview = picture(9, 64, 48), picture(9, 32, 24)
    data = encoded(image, "MPO", save_all=True, append_images=[preview], quality=95, subsampling=0)
    new = check(data, "DSC_0001.JPG")
    assert (new.format, new.width, new.height) == ("JPEG", 64, 48)
    assert_alike(pixels_of(data), image, 3)


# Orientation


# What EXIF says of the camera: stored = turned back from what a person sees
TURNED_BACK = {
    1: lambda seen: seen,
    2: np.fliplr,
    3: lambda seen: np.rot90(seen, 2),
    4: np.flipud,
    5: lambda seen: seen.transpose(1, 0, 2),
    6: lambda seen: np.rot90(seen, 1),
    7: lambda seen: np.rot90(seen.transpose(1, 0, 2), 2),
    8: lambda seen: np.rot90(seen, -1),
}


@pytest.mark.parametrize("orientation", TURNED_BACK)
@pytest.mark.parametrize(
    ("format", "options"),
    [("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})],
)
def test_a_rotated_photo_is_decoded_upright_with_upright_width_and_height(format, options, orientation):
    seen = picture(10, 48, 32)
    stored = Image.fromarray(np.ascontiguousarray(TURNED_BACK[orientation](np.asarray(seen))))
    exif = Image.Exif()
    exif[TAG] = orientation
    data = encoded(stored, format, exif=exif, **options)
    assert_alike(pixels_of(data), seen, 3 if format == "JPEG" else 0)
    new = check(data, "a")
    assert (new.width, new.height) == (48, 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_an_image_with_broken_exif_is_accepted():
    image = picture(11)
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"):
        data = encoded(image, "JPEG", exif=exif, quality=95, subsampling=0)
        assert check(data, "a.jpg").width == 32
        assert_alike(pixels_of(data), image, 3)


def test_the_hash_from_reduced_decoding_is_close_to_that_of_all_pixels():
    for format in ("JPEG", "PNG"):
        data = encoded(picture(12, 640, 480), format)
        new = check(data, "a")  # a JPEG is decoded at a fraction of its size for this
        quick, exact = perceptual_hashes([new.thumbnail, thumbnail(pixels.decode(data))])
        assert (quick ^ exact).bit_count() <= 2
