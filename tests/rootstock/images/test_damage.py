"""Damaged image files: they are detected in every format and kept only where that is set; unusual but intact files are
not mistaken for damaged."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from PIL import Image

from rootstock.images import decoding, inspection, pixels
from rootstock.images.inspection import Checks, Reason, Rejected
from tests.image_files import RGB
from tests.image_writers import chunk, png, tiff
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
        inspection.check(data, path, checks)
    except Rejected as rejected:
        return rejected.reason
    return None


HARMED = [(kind, harm) for kind in JPEGS for harm in HARMS]


@pytest.mark.parametrize(("kind", "harm"), HARMED)
def test_a_damaged_jpeg_is_detected(kind, harm):
    data = JPEGS[kind]
    assert why_not(data, "a.jpg") is None
    reason = why_not(HARMS[harm](data, len(data) // 2), "a.jpg")
    assert reason in (Reason.DAMAGED, Reason.TRUNCATED, Reason.UNDECODABLE)


@pytest.mark.parametrize(("kind", "harm"), HARMED)
def test_a_damaged_image_that_is_kept_has_its_damage_noted_and_can_be_decoded(kind, harm):
    data = HARMS[harm](JPEGS[kind], len(JPEGS[kind]) // 2)
    try:
        new = inspection.check(data, "a.jpg", KEEP)
    except Rejected as rejected:
        assert rejected.reason in (Reason.TRUNCATED, Reason.UNDECODABLE)
        return
    assert new.damage and new.data == data
    seen = np.asarray(pixels.decode(new.data))
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
def test_an_intact_jpeg_with_additional_data_is_accepted(kind):
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
QUIET = Image.fromarray((np.asarray(picture(1, 300, 200)) + GRAIN / 4).clip(0, 255).astype("uint8"))
PACKED_TIFFS = {
    name: encoded(QUIET, "TIFF", compression=name)
    for name in ("tiff_adobe_deflate", "tiff_lzw", "packbits", "jpeg", "zstd", "lzma")
}
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
def test_damaged_files_of_all_other_formats_are_detected(name):
    path, data = OTHERS[name]
    assert why_not(data, path) in (Reason.DAMAGED, Reason.TRUNCATED, Reason.UNDECODABLE)
    try:
        new = inspection.check(data, path, KEEP)
    except Rejected:
        return
    assert new.damage
    assert pixels.decode(new.data).size == (new.width, new.height)


INSIDE = {
    "zeros": lambda data, half: data[:half] + bytes(1024) + data[half + 1024 :],
    "ones": lambda data, half: data[:half] + b"\xff" * 1024 + data[half + 1024 :],
    "others": lambda data, half: data[:half] + np.random.default_rng(0).bytes(1024) + data[half + 1024 :],
    "zeros to the end": lambda data, half: data[:half] + bytes(len(data) - half),
}


# A piece in Zstandard has no checksum: other bytes that it unpacks cannot be told.
HOLES = [(kind, harm) for kind in PACKED_TIFFS for harm in INSIDE if (kind, harm) != ("zstd", "others")]


@pytest.mark.parametrize(("compression", "harm"), HOLES)
def test_overwritten_bytes_in_a_compressed_tiff_are_detected(compression, harm):
    data = PACKED_TIFFS[compression]
    assert why_not(data, "a.tif") is None
    reason = why_not(INSIDE[harm](data, len(data) // 2), "a.tif")
    assert reason in (Reason.DAMAGED, Reason.TRUNCATED, Reason.UNDECODABLE)


LARGE = Image.fromarray(np.random.default_rng(2).normal(128, 30, (900, 1200, 3)).clip(0, 255).astype(np.uint8))
AS_TEXT = {
    "line feeds became pairs": (b"\n", b"\r\n"),
    "pairs became line feeds": (b"\r\n", b"\n"),
    "carriage returns became line feeds": (b"\r", b"\n"),
    "line feeds became carriage returns": (b"\n", b"\r"),
}


@pytest.mark.parametrize("change", AS_TEXT)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"format": "JPEG", "quality": 98, "subsampling": 0}),
        ("a.webp", {"format": "WEBP", "quality": 100}),
        ("a.tif", {"format": "TIFF", "compression": "tiff_lzw"}),
        ("a.tif", {"format": "TIFF", "compression": "jpeg", "quality": 98}),
    ],
)
def test_a_file_with_converted_line_ends_is_detected_as_damaged(name, options, change):
    data = encoded(LARGE, **options)
    assert why_not(data, name) is None
    assert why_not(data.replace(*AS_TEXT[change]), name) is not None


PATTERN = np.tile(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8), (40, 56, 1))
CHECKED = np.repeat((np.indices((700, 900)).sum(0) // 8 % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
REGULAR = {
    "white": Image.new("RGB", (2500, 1800), "white"),
    "a pattern": Image.fromarray(PATTERN),
    "a chess board": Image.fromarray(CHECKED),
    "a gradient": Image.fromarray(np.linspace(0, 255, 2500)[None].repeat(900, 0).astype(np.uint8)),
}


@pytest.mark.parametrize("name", REGULAR)
def test_an_image_of_repeated_bytes_is_not_mistaken_for_damaged(name):
    for options in (
        {"format": "JPEG", "quality": 95, "optimize": True},
        {"format": "JPEG", "quality": 95, "progressive": True},
        {"format": "WEBP", "quality": 80, "method": 0},
        {"format": "TIFF", "compression": "tiff_lzw"},
        {"format": "TIFF", "compression": "packbits"},
    ):
        for mode in ("RGB", "CMYK") if options["format"] != "WEBP" else ("RGB",):
            assert why_not(encoded(REGULAR[name].convert(mode), **options), "a") is None, options


def test_a_png_kept_despite_a_wrong_checksum_of_a_text_keeps_all_pixels():
    data = OTHERS["png: checksum of a text"][1]
    new = inspection.check(data, "a.png", KEEP)
    assert new.damage == "wrong checksum of a tEXt chunk"
    assert np.array_equal(np.asarray(pixels.decode(new.data)), np.asarray(PHOTO))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_progressive_jpeg_cut_between_two_scans_is_detected(mode):
    data = encoded(PHOTO.convert(mode), "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    assert len(scans) > 5 and why_not(data, "a.jpg") is None
    for at in scans[1:]:
        tables = data.rfind(b"\xff\xc4", 0, at)  # in front of a scan
        for cut in {at, tables} if data.find(b"\xff\xda", tables) == at else {at}:
            assert why_not(data[:cut] + b"\xff\xd9", "a.jpg") is Reason.DAMAGED


@given(st.sampled_from(sorted(JPEGS)), st.floats(0.05, 0.98))
@example("progressive", 0.18899613062868859)
@settings(max_examples=60, deadline=None)
def test_a_jpeg_cut_anywhere_is_detected_whatever_follows(kind, where):
    data = JPEGS[kind]
    at = int(len(data) * where)
    for tail in (b"", bytes(len(data) - at), b"\xff\xd9"):
        assert why_not(data[:at] + tail, "a.jpg") in (Reason.DAMAGED, Reason.TRUNCATED, Reason.UNDECODABLE)
