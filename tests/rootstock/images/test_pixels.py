"""Every kind of image file: decoded as a person expects, or rejected with the reason."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageCms

from rootstock.images import inspection, pixels
from rootstock.images.inspection import Checks, Reason, Rejected
from rootstock.images.orientation import TAG
from rootstock.images.perceptual_hash import perceptual_hashes, thumbnail
from tests.images import encoded, picture

CHECKS = Checks(min_side=8, max_megapixels=100, max_side=None, accept_wrong_extension=False)


def pixels_of(data: bytes) -> np.ndarray:
    image = pixels.decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def check(data: bytes, path: str, **changes) -> inspection.NewImage:
    return inspection.check(
        data, path, Checks(**{name: changes.get(name, getattr(CHECKS, name)) for name in CHECKS.__slots__})
    )


def why_not(data: bytes, path: str, **changes) -> Reason:
    with pytest.raises(Rejected) as rejected:
        check(data, path, **changes)
    return rejected.value.reason


def assert_alike(one: np.ndarray, other: np.ndarray | Image.Image, tolerance: float) -> None:
    """Check the mean difference per pixel of two images against a tolerance (of 255)."""
    assert np.abs(one - np.asarray(other).astype(int)).mean() <= tolerance


# What is ingested


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
def test_each_format_gives_its_pixels_back(name, options, tolerance):
    image = picture(1, 48, 32)
    data = encoded(image, **options)
    new = check(data, f"ants/{name}")
    assert (new.format, new.width, new.height, new.data) == (options["format"], 48, 32, data)
    assert new.image_id == inspection.image_id(data)
    assert_alike(pixels_of(data), image, tolerance)


@pytest.mark.parametrize("mode", ["L", "1"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM"])
def test_grey_and_black_and_white_images_keep_their_greys(mode, format):
    image = picture(2, mode=mode)
    data = encoded(image, format)
    assert (pixels_of(data) == np.asarray(image.convert("RGB"))).all()
    assert check(data, "a").format == format


def test_a_grey_jpeg_keeps_its_greys():
    image = picture(2, mode="L")
    assert_alike(pixels_of(encoded(image, "JPEG", quality=95)), image.convert("RGB"), 2)


def test_a_palette_image_shows_the_colours_of_its_palette():
    image = picture(3).quantize(64)
    assert (pixels_of(encoded(image)) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_palette_image_is_white_where_it_is_transparent(format):
    image = Image.new("P", (16, 16), 0)
    image.putpalette([200, 0, 0, 0, 90, 0])
    image.paste(1, (0, 0, 8, 16))
    pixels = pixels_of(encoded(image, format, transparency=1))
    assert (pixels[:, :8] == 255).all()
    assert (pixels[:, 8:] == [200, 0, 0]).all()


@pytest.mark.parametrize(("mode", "clear"), [("L", 77), ("RGB", (9, 8, 7)), ("1", 0)])
def test_a_png_with_a_transparent_colour_is_white_there(mode, clear):
    image = Image.new(mode, (16, 16), clear)
    image.paste(255 if mode != "RGB" else (255, 0, 0), (0, 0, 8, 16))
    pixels = pixels_of(encoded(image, transparency=clear))
    assert (pixels[:, 8:] == 255).all()
    assert (pixels[:, :8] == (255 if mode != "RGB" else [255, 0, 0])).all()


@pytest.mark.parametrize(("mode", "colour", "over_white"), [("RGBA", (200, 0, 100, 128), (227, 127, 177)),
                                                            ("LA", (100, 64), (216, 216, 216))])  # fmt: skip
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_what_is_half_transparent_lies_over_white(mode, colour, over_white, format):
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    pixels = pixels_of(encoded(Image.new(mode, (16, 16), colour), format, **options))
    assert np.abs(pixels - over_white).max() <= 1


def test_a_cmyk_jpeg_shows_the_colours_that_were_printed():
    image = picture(4, 64, 64)
    image.paste("white", (0, 0, 32, 32))
    pixels = pixels_of(encoded(image.convert("CMYK"), "JPEG", quality=95))
    assert_alike(pixels, image, 6)
    assert pixels[:24, :24].min() > 245  # not inverted


def test_a_cmyk_tiff_shows_the_colours_that_were_printed():
    image = picture(4)
    assert (pixels_of(encoded(image.convert("CMYK"), "TIFF")) == np.asarray(image)).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_become_the_eight_that_a_viewer_shows(format):
    grey = np.asarray(picture(5, mode="L"))
    data = encoded(Image.fromarray(grey.astype(np.uint16) * 257), format)
    assert (pixels_of(data) == grey[..., None]).all()
    assert (pixels_of(check(data, "a").data) == grey[..., None]).all()


def test_a_sixteen_bit_tiff_may_have_its_bytes_in_either_order():
    grey = np.asarray(picture(5, mode="L"))
    big = Image.frombytes("I;16B", (32, 32), (grey.astype(">u2") * 257).tobytes())
    assert (pixels_of(encoded(big, "TIFF")) == grey[..., None]).all()


def test_a_sixteen_bit_colour_png_becomes_eight_bits():
    colours = np.asarray(picture(6))
    rows = (colours.astype(">u2") * 257).tobytes()
    lines = b"".join(b"\0" + rows[at : at + 192] for at in range(0, len(rows), 192))
    assert (pixels_of(png_by_hand(32, 32, 16, 2, zlib.compress(lines))) == colours).all()


def png_by_hand(width: int, height: int, bits: int, colour_type: int, compressed: bytes) -> bytes:
    """Write a PNG that Pillow cannot write, chunk by chunk."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def test_a_lab_tiff_shows_its_colours():
    lab = ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB")
    image = picture(8)
    assert_alike(pixels_of(encoded(ImageCms.applyTransform(image, to_lab), "TIFF")), image, 4)


def test_a_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels_of(data) == [255, 0, 0]).all()


def test_a_phones_picture_with_a_preview_is_a_jpeg():
    image, preview = picture(9, 64, 48), picture(9, 32, 24)
    data = encoded(image, "MPO", save_all=True, append_images=[preview], quality=95, subsampling=0)
    new = check(data, "DSC_0001.JPG")
    assert (new.format, new.width, new.height) == ("JPEG", 64, 48)
    assert_alike(pixels_of(data), image, 3)


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
def test_a_turned_photo_stands_upright_and_so_do_its_width_and_height(format, options, orientation):
    seen = picture(10, 48, 32)
    stored = Image.fromarray(np.ascontiguousarray(TURNED_BACK[orientation](np.asarray(seen))))
    exif = Image.Exif()
    exif[TAG] = orientation
    data = encoded(stored, format, exif=exif, **options)
    assert_alike(pixels_of(data), seen, 3 if format == "JPEG" else 0)
    new = check(data, "a")
    assert (new.width, new.height) == (48, 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_broken_exif_does_not_cost_the_image():
    image = picture(11)
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"):
        data = encoded(image, "JPEG", exif=exif, quality=95, subsampling=0)
        assert check(data, "a.jpg").width == 32
        assert_alike(pixels_of(data), image, 3)


def test_the_hash_of_a_new_image_is_that_of_what_it_shows():
    for format in ("JPEG", "PNG"):
        data = encoded(picture(12, 640, 480), format)
        new = check(data, "a")  # a JPEG is decoded at a fraction of its size for this
        quick, exact = perceptual_hashes([new.thumbnail, thumbnail(pixels.decode(data))])
        assert (quick ^ exact).bit_count() <= 2


# What is rejected


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
def test_a_file_without_its_end_is_truncated(name, options, share):
    data = encoded(picture(13, 90, 60), **options)
    assert why_not(data[: int(len(data) * share)], name) is Reason.TRUNCATED


def test_garbage_with_an_images_name_is_undecodable():
    assert why_not(np.random.default_rng(0).bytes(5000), "ants/1.jpg") is Reason.UNDECODABLE


def test_text_with_an_images_name_is_undecodable():
    assert why_not(b"<html>404 Not Found</html>", "ants/1.jpg") is Reason.UNDECODABLE


def test_text_that_claims_nothing_is_not_an_image():
    assert why_not(b"See the licence.", "ants/LICENSE") is Reason.NOT_AN_IMAGE


def test_an_empty_file_is_not_an_image():
    assert why_not(b"", "ants/1.jpg") is Reason.NOT_AN_IMAGE


def test_an_image_with_damage_inside_is_undecodable():
    data = bytearray(encoded(picture(14, 90, 60)))
    data[60:90] = bytes(30)
    assert why_not(bytes(data), "a.png") is Reason.DAMAGED


def test_a_png_named_jpg_is_rejected_unless_that_is_allowed():
    data = encoded(picture(15))
    assert why_not(data, "ants/1.jpg") is Reason.WRONG_EXTENSION
    assert check(data, "ants/1.jpg", accept_wrong_extension=True).format == "PNG"


def test_an_image_with_a_short_side_is_too_small():
    data = encoded(picture(16, 200, 20))
    assert why_not(data, "a.png", min_side=21) is Reason.TOO_SMALL
    assert check(data, "a.png", min_side=20).height == 20


def test_a_decompression_bomb_is_refused_by_its_header():
    bomb = png_by_hand(30_000, 30_000, 8, 2, b"never looked at")
    assert why_not(bomb, "a.png") is Reason.TOO_LARGE
    assert why_not(bomb, "a.png", max_megapixels=1000) is not Reason.TOO_LARGE


def test_the_header_alone_is_enough_to_refuse_a_known_image_under_a_wrong_name():
    data = encoded(picture(17))
    inspection.check_header(data, "a.png", CHECKS)
    with pytest.raises(Rejected) as rejected:
        inspection.check_header(data, "a.jpg", CHECKS)
    assert rejected.value.reason is Reason.WRONG_EXTENSION


@given(st.binary(max_size=200), st.sampled_from(["a.png", "a.jpg", "a.gif", "a.tif", "a"]))
@settings(max_examples=200, deadline=None)
def test_no_bytes_do_more_than_be_rejected(data, path):
    with pytest.raises(Rejected):
        check(data, path)


WHOLE = {
    format: encoded(picture(18, 40, 24), format) for format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 1), st.binary(min_size=1, max_size=4), st.integers(0, 2000))
@settings(max_examples=400, deadline=None)
def test_what_passes_the_check_can_always_be_decoded(format, where, wrong, cut):
    data = bytearray(WHOLE[format])
    at = int(where * (len(data) - 1))
    data[at : at + len(wrong)] = wrong
    damaged = bytes(data[: len(data) - cut] if cut < len(data) else data)
    try:
        new = check(damaged, "a", max_megapixels=1)
    except Rejected:
        return
    assert pixels.decode(new.data).size == (new.width, new.height)


# Stored smaller


@pytest.mark.parametrize(("size", "stored"), [((640, 480), (100, 75)), ((480, 640), (75, 100)), ((100, 90), (100, 90))])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_larger_photos_are_stored_with_the_longer_side_asked_for(format, size, stored):
    image = picture(19, *size)
    data = encoded(image, format)
    new = check(data, "a", max_side=100)
    assert (new.width, new.height) == pixels.decode(new.data).size == stored
    assert new.format == format
    assert new.image_id == inspection.image_id(data)  # the name is that of the file that came in
    assert (new.data == data) == (size == stored)
    assert_alike(pixels_of(new.data), image.resize(stored, Image.Resampling.LANCZOS), 4)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_turned_photo_is_stored_upright_when_it_is_stored_smaller(format):
    seen = picture(20, 300, 200)
    exif = Image.Exif()
    exif[TAG] = 6
    new = check(encoded(seen.rotate(90, expand=True), format, exif=exif), "a", max_side=150)
    assert (new.width, new.height) == pixels.decode(new.data).size == (150, 100)
    assert_alike(pixels_of(new.data), seen.resize((150, 100), Image.Resampling.LANCZOS), 4)


def test_a_transparent_deep_or_printed_image_is_stored_smaller_as_it_looks():
    clear = Image.new("RGBA", (64, 64), (200, 0, 100, 128))
    assert np.abs(pixels_of(check(encoded(clear), "a.png", max_side=32).data) - (227, 127, 177)).max() <= 1
    deep = Image.fromarray(np.full((64, 64), 100 * 257, np.uint16))
    assert (pixels_of(check(encoded(deep, "TIFF"), "a.tif", max_side=32).data) == 100).all()
    printed = encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG")
    assert np.abs(pixels_of(check(printed, "a.jpg", max_side=32).data) - (255, 0, 0)).max() <= 4
