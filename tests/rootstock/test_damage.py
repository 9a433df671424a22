"""Files that something happened to: each is named, with what is wrong, and kept only where that is asked for; sound
files that look odd are not among them."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from rootstock import decoding, images, intake
from rootstock.intake import Checks, Reason, Rejected
from tests.image_files import RGB, chunk, png, tiff
from tests.images import encoded, picture

CHECKS, KEEP = Checks(8, 100, None, False), Checks(8, 100, None, False, damaged="keep")
GRAIN = np.random.default_rng(0).normal(0, 20, (200, 300, 3))
PHOTO = Image.fromarray((np.asarray(picture(1, 300, 200)) + GRAIN).clip(0, 255).astype("uint8"))
JPEGS = {
    "baseline": encoded(PHOTO, "JPEG", quality=90),
    "progressive": encoded(PHOTO, "JPEG", quality=90, progressive=True),
    "grey": encoded(PHOTO.convert("L"), "JPEG", quality=90),
    "cmyk": encoded(PHOTO.convert("CMYK"), "JPEG", quality=90),
    "with restarts": encoded(PHOTO, "JPEG", quality=90, restart_marker_rows=1),
}
HARMS = {
    "cut": lambda data, half: data[:half],
    "cut, and zeros behind": lambda data, half: data[:half] + bytes(len(data) - half),
    "cut, and the end mark behind": lambda data, half: data[:half] + b"\xff\xd9",
    "cut, zeros and the end mark behind": lambda data, half: data[:half] + bytes(len(data) - half) + b"\xff\xd9",
    "zeros inside": lambda data, half: data[:half] + bytes(1024) + data[half + 1024 :],
    "ones inside": lambda data, half: data[:half] + b"\xff" * 1024 + data[half + 1024 :],
    "a piece missing": lambda data, half: data[:half] + data[half + 1024 :],
    "a piece twice": lambda data, half: data[:half] + data[half - 1024 :],
    "text mode": lambda data, half: data.replace(b"\n", b"\r\n"),
    "text mode, backwards": lambda data, half: data[:half] + data[half:].replace(b"\r", b"\n").replace(b"\n", b"\r\n"),
    "seven bits": lambda data, half: data[:half] + bytes(byte & 127 for byte in data[half:]),
}


def why_not(data: bytes, path: str, checks: Checks = CHECKS) -> Reason | None:
    try:
        intake.check(data, path, checks)
    except Rejected as rejected:
        return rejected.reason
    return None


# Zeros inside four inks are the one harm of these of which libjpeg has no word: the stream happens to fit again.
HARMED = [(kind, harm) for kind in JPEGS for harm in HARMS if (kind, harm) != ("cmyk", "zeros inside")]


@pytest.mark.parametrize(("kind", "harm"), HARMED)
def test_a_jpeg_that_something_happened_to_is_not_taken_for_whole(kind, harm):
    data = JPEGS[kind]
    assert why_not(data, "a.jpg") is None
    reason = why_not(HARMS[harm](data, len(data) // 2), "a.jpg")
    assert reason in (Reason.DAMAGED, Reason.TRUNCATED, Reason.UNDECODABLE)


@pytest.mark.parametrize(("kind", "harm"), HARMED)
def test_what_is_kept_though_it_is_damaged_says_so_and_can_always_be_decoded(kind, harm):
    data = HARMS[harm](JPEGS[kind], len(JPEGS[kind]) // 2)
    try:
        new = intake.check(data, "a.jpg", KEEP)
    except Rejected as rejected:
        assert rejected.reason in (Reason.TRUNCATED, Reason.UNDECODABLE)
        return
    assert new.said and new.data == data
    seen = np.asarray(images.decode(new.data))
    assert np.array_equal(decoding.decode(new.data).permute(1, 2, 0).numpy(), seen)


EXIF_THUMBNAIL = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + encoded(PHOTO.resize((80, 60)), "JPEG")
SOUND = {
    "zeros behind the end": JPEGS["baseline"] + bytes(5000),
    "a film behind the end": JPEGS["baseline"] + b"\0\0\0\x18ftypmp42" + np.random.default_rng(1).bytes(50_000),
    "a second picture behind the end": JPEGS["baseline"] + JPEGS["progressive"],
    "a second picture in its index": encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO.resize((80, 60))]),
    "a small picture inside": encoded(PHOTO, "JPEG", exif=EXIF_THUMBNAIL),
    "a comment and a profile": encoded(PHOTO, "JPEG", comment=b"x" * 60_000, icc_profile=bytes(200_000)),
    "padding before the end": JPEGS["baseline"][:-2] + b"\xff" * 9 + b"\xff\xd9",
    "one colour": encoded(Image.new("RGB", (500, 400), "white"), "JPEG", optimize=True),
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_photo_with_more_than_a_photo_in_it_is_taken_in(kind):
    assert why_not(SOUND[kind], "a.jpg") is None


WHOLE_PNG = encoded(PHOTO)
AT = WHOLE_PNG.index(b"IDAT")


def with_wrong_checksum(data: bytes, kind: bytes) -> bytes:
    at = data.index(kind)
    end = at + 4 + struct.unpack(">I", data[at - 4 : at])[0]
    return data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]


TEXT = chunk(b"tEXt", b"a\0b")
GIF = encoded(PHOTO.quantize(64), "GIF")
WEBP = encoded(PHOTO, "WEBP", quality=90)
TIFF = {name: encoded(PHOTO, "TIFF", **({"compression": name} if name else {})) for name in ("", "tiff_lzw", "jpeg")}
DEEP = tiff(RGB.astype(np.uint16) * 257, 16, photometric=2, rows=4, compression=8)
OTHERS = {
    "png: checksum of the pixels": ("a.png", with_wrong_checksum(WHOLE_PNG, b"IDAT")),
    "png: checksum of a text": ("a.png", with_wrong_checksum(WHOLE_PNG[:33] + TEXT + WHOLE_PNG[33:], b"tEXt")),
    "png: checksum of the header": ("a.png", with_wrong_checksum(WHOLE_PNG, b"IHDR")),
    "png: checksum of the end": ("a.png", WHOLE_PNG[:-1] + b"\0"),
    "png: no end": ("a.png", WHOLE_PNG[:-12]),
    "png: a byte of the pixels": ("a.png", WHOLE_PNG[: AT + 5000] + b"\x55" + WHOLE_PNG[AT + 5001 :]),
    "png: zeros behind the middle": ("a.png", WHOLE_PNG[: AT + 5000] + bytes(len(WHOLE_PNG) - AT - 5000)),
    "png: pixels too few": (
        "a.png", WHOLE_PNG[:33] + chunk(b"IDAT", zlib.compress(bytes(20_000))) + WHOLE_PNG[-12:]
    ),
    "png of 16 bits: pixels too few": ("a.png", png(RGB.astype(np.uint16), 16, 2)[:33]
                                       + chunk(b"IDAT", zlib.compress(bytes(900))) + WHOLE_PNG[-12:]),
    "webp: cut": ("a.webp", WEBP[: len(WEBP) // 2]),
    "webp: zeros behind the middle": ("a.webp", WEBP[: len(WEBP) // 2] + bytes(len(WEBP) - len(WEBP) // 2)),
    "gif: cut": ("a.gif", GIF[: len(GIF) // 2]),
    "gif: no end": ("a.gif", GIF[:-2]),
    "gif: zeros behind the middle": ("a.gif", GIF[: len(GIF) // 2] + bytes(len(GIF) - len(GIF) // 2)),
    "bmp: cut": ("a.bmp", encoded(PHOTO, "BMP")[:-1]),
    "ppm: cut": ("a.ppm", encoded(PHOTO, "PPM")[:-1]),
    "pgm of 12 bits: cut": ("a.pgm", b"P5 20 20 4095\n" + bytes(799)),
    "plain ppm: cut": ("a.ppm", b"P3 20 20 255\n" + b"1 " * 1199),
    "tiff: cut": ("a.tif", TIFF[""][: len(TIFF[""]) // 2]),
    "tiff, lzw: cut": ("a.tif", TIFF["tiff_lzw"][: len(TIFF["tiff_lzw"]) // 2]),
    "tiff of 16 bits: zeros inside": ("a.tif", DEEP[:2000] + bytes(900) + DEEP[2900:]),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_damaged_file_of_every_other_format_is_not_taken_for_whole(name):
    path, data = OTHERS[name]
    assert why_not(data, path) in (Reason.DAMAGED, Reason.TRUNCATED, Reason.UNDECODABLE)
    try:
        new = intake.check(data, path, KEEP)
    except Rejected:
        return
    assert new.said
    assert images.decode(new.data).size == (new.width, new.height)


def test_where_damage_is_kept_a_text_with_a_wrong_checksum_costs_no_pixel():
    data = OTHERS["png: checksum of a text"][1]
    new = intake.check(data, "a.png", KEEP)
    assert new.said == "the checksum of a chunk tEXt is wrong"
    assert np.array_equal(np.asarray(images.decode(new.data)), np.asarray(PHOTO))


@given(st.sampled_from(sorted(JPEGS)), st.floats(0.05, 0.98))
@settings(max_examples=60, deadline=None)
def test_a_jpeg_cut_anywhere_is_not_taken_for_whole_whatever_is_put_behind(kind, where):
    data = JPEGS[kind]
    at = int(len(data) * where)
    for tail in (b"", bytes(len(data) - at), b"\xff\xd9"):
        assert why_not(data[:at] + tail, "a.jpg") in (Reason.DAMAGED, Reason.TRUNCATED, Reason.UNDECODABLE)
