"""The pixels of image files of every kind: each decoder gives the same, upright, whatever metadata a file has."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from rootstock.config.architectures import Transform
from rootstock.images import decoding, gpu_decoding, inspection, loader, pixels
from rootstock.images.inspection import Checks, RangeUnknown, Reason, Rejected
from tests.image_files import GREY, RGB, Kind, every_kind, with_exif
from tests.image_writers import chunk, png, tiff
from tests.images import encoded, picture

KINDS = every_kind()
CHECKS = Checks(8, 100, None, False)


def checks_for(kind: Kind) -> Checks:
    return Checks(8, 100, None, False, value_range=kind.value_range)


def bytes_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_file_of_every_kind_is_decoded_and_stored_with_its_pixels(kind):
    new = inspection.check(kind.data, f"a.{kind.extension}", checks_for(kind))
    assert (new.width, new.height) == kind.shows.shape[1::-1]
    stored = bytes_of(pixels.decode(new.data)).astype(int)
    assert np.abs(stored - kind.shows).mean() <= kind.tolerance
    shown = bytes_of(pixels.decode(kind.data, kind.value_range)).astype(int)
    assert np.abs(shown - kind.shows).mean() <= kind.tolerance
    assert np.array_equal(decoding.decode(new.data).permute(1, 2, 0).numpy(), stored)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.value_range], ids=lambda kind: kind.name)
def test_an_unclear_value_range_is_reported(kind):
    try:
        new = inspection.check(kind.data, "a", CHECKS)
    except RangeUnknown as unknown:
        assert unknown.found.kind in unknown.detail and f"{unknown.found.high:g}" in unknown.detail
    else:
        assert new.deep is not None and new.deep.unclear  # 16 bits: the other images of the source may tell


@pytest.mark.parametrize(
    "data",
    [
        tiff(np.zeros((16, 16, 5)), 16, photometric=1),
        tiff(np.zeros((16, 16)), 16, photometric=3),
        tiff(np.zeros((16, 16, 3)), 8, photometric=6),  # colours of fewer pixels, by default
        tiff(np.zeros((16, 16)), 8, format=4),
        tiff(np.zeros((16, 16, 3)), 8, photometric=2, compression=50002),  # JPEG XL
        tiff(np.zeros((16, 16)), 4, order=">", big=True),
        png(RGB, 8, 2).replace(b"\x1a\n", b"\x1a\n" + chunk(b"CgBI", b"P\0 \6"), 1),
    ],
)
def test_a_file_that_no_library_decodes_correctly_is_unsupported(data):
    with pytest.raises(Rejected) as rejected:
        inspection.check(data, "a", CHECKS)
    assert rejected.value.reason is Reason.UNSUPPORTED


@given(st.integers(9, 15), st.data())
@settings(max_examples=20, deadline=None)
def test_images_with_one_value_range_keep_the_ratio_of_their_values(bits, data):
    dim = data.draw(st.integers(2, 8))
    bright = GREY.astype(np.uint16) << (bits - 8)
    seen = [
        inspection.check(png(values, 16, 0), "a.png", Checks(8, 100, None, False, value_range=(0, 255 << (bits - 8))))
        for values in (bright, bright // dim)
    ]
    bright_mean, dim_mean = (bytes_of(pixels.decode(new.data)).mean() for new in seen)
    assert abs(bright_mean / dim - dim_mean) < 1


# How the camera was held


def block(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    value = struct.pack(order + {3: "H2x", 4: "I"}[kind], orientation)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
JPEG = encoded(Image.fromarray(RGB), "JPEG", quality=95, subsampling=0)
PNG = encoded(Image.fromarray(RGB))
EXIF, AD = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def png_with(*chunks: bytes) -> bytes:
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def itxt(text: bytes, *, packed: bool) -> bytes:
    content = zlib.compress(text) if packed else text
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0" + bytes([packed, 0]) + b"\0\0" + content)


HEX = block(6).hex().encode()
TURNED = {
    "exif": with_exif(JPEG, EXIF + block(6)),
    "exif, big-endian": with_exif(JPEG, EXIF + block(6, ">")),
    "exif, as a long": with_exif(JPEG, EXIF + block(6, kind=4)),
    "exif headed twice": with_exif(JPEG, EXIF + EXIF + block(6)),
    "exif behind another segment": with_exif(JPEG, b"something else", EXIF + block(6)),
    "exif behind padding": JPEG[:2] + b"\xff\xff\xff" + with_exif(JPEG, EXIF + block(6))[3:],
    "exif in two segments": with_exif(JPEG, EXIF + block(6)[:11], EXIF + block(6)[11:]),
    "xmp": with_exif(JPEG, AD + XMP),
    "xmp, and exif that is broken": with_exif(JPEG, EXIF + b"broken", AD + XMP),
    "xmp with apostrophes": with_exif(JPEG, AD + XMP.replace(b'"', b"'")),
    "png": png_with(chunk(b"eXIf", block(6))),
    "png, headed": png_with(chunk(b"eXIf", EXIF + block(6))),
    "png, behind the pixels": PNG[:-12] + chunk(b"eXIf", block(6)) + PNG[-12:],
    "png, xmp": png_with(itxt(XMP, packed=False)),
    "png, xmp packed": png_with(itxt(XMP, packed=True)),
    "png, imagemagick's": png_with(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n      26\n" + HEX + b"\n"))
    ),
    "webp": encoded(Image.fromarray(RGB), "WEBP", lossless=True, exif=EXIF + block(6)),
    "webp, xmp": encoded(Image.fromarray(RGB), "WEBP", lossless=True, xmp=XMP),
    "tiff": tiff(RGB, 8, photometric=2, more=((274, 3, (6,)),)),
    "tiff, xmp": tiff(RGB, 8, photometric=2, more=((700, 1, tuple(XMP)),)),
    "tiff, deflated": encoded(Image.fromarray(RGB), "TIFF", compression="tiff_adobe_deflate", tiffinfo={274: 6}),
    "tiff of 16 bits": tiff(RGB.astype(np.uint16) * 257, 16, photometric=2, more=((274, 3, (6,)),)),
}
JUNK = {
    "garbage": b"\0\x08\0\x02\x01\x12\0\x03",
    "a directory behind the end": b"II*\0\xff\xff\xff\xff",
    "more entries than there are": b"MM\0*\0\0\0\x08\xff\xff\x01\x12",
    "nothing": b"",
    "0": block(0), "9": block(9), "255": block(255),
    "a text": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
}  # fmt: skip
SIDEWAYS = np.rot90(RGB, -1)
TO = Transform(24, 24, "bilinear", (0.5,) * 3, (0.5,) * 3)


def ways(data: bytes) -> dict[str, np.ndarray]:
    """Decode on every way there is: (h, w, 3) uint8 each."""
    [there] = gpu_decoding.views([pixels.open_file(data)], TO, torch.device("cpu"))
    return {
        "for ingest": bytes_of(pixels.decode(data)),
        "for a network": decoding.decode(data).permute(1, 2, 0).numpy(),
        "for a network, by the GPU code on a CPU": there.permute(1, 2, 0).numpy(),
        "resized for a network": loader.prepare(data, TO),
    }  # fmt: skip


@pytest.mark.parametrize("name", TURNED)
def test_every_decoder_applies_the_orientation_alike(name):
    data = TURNED[name]
    new = inspection.check(data, "a", Checks(8, 100, None, False))
    assert (new.width, new.height) == SIDEWAYS.shape[1::-1]
    seen = ways(new.data)
    assert np.abs(seen["for ingest"].astype(int) - SIDEWAYS).mean() < 3
    assert np.array_equal(seen["for ingest"], seen["for a network"])
    assert np.array_equal(seen["for a network, by the GPU code on a CPU"], seen["resized for a network"])
    augmented = loader.view(new.data, TO, "crop", seed=1)
    assert torch.equal(augmented, loader.view(encoded(pixels.decode(new.data)), TO, "crop", seed=1))
    smaller = inspection.check(data, "a", Checks(8, 100, 32, False))
    assert (smaller.width, smaller.height) == (25, 32)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_decoded_at_reduced_size_has_the_same_orientation(orientation):
    large = encoded(picture(5, 400, 240), "JPEG", quality=95)
    data = with_exif(large, EXIF + EXIF + block(orientation))
    whole, reduced = (decoding.decode(data, shorter).permute(1, 2, 0).numpy() for shorter in (None, 50))
    assert reduced.shape[0] * 4 == whole.shape[0] and reduced.shape[1] * 4 == whole.shape[1]
    small = np.asarray(Image.fromarray(whole).reduce(4)).astype(int)
    assert np.abs(small - reduced).mean() < 4


@pytest.mark.parametrize("name", JUNK)
@pytest.mark.filterwarnings("error")
def test_an_image_with_broken_exif_and_intact_pixels_is_accepted(name):
    junk, image = JUNK[name], Image.fromarray(RGB)
    files = {
        "a.jpg": with_exif(JPEG, EXIF + junk),
        "b.jpg": with_exif(JPEG, junk),
        "a.png": png_with(chunk(b"eXIf", junk)),
        "b.png": png_with(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 8\n" + junk))),
        "c.png": png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + junk)),
        "a.webp": encoded(image, "WEBP", lossless=True, exif=junk or b"\0"),
    }
    for path, data in files.items():
        new = inspection.check(data, path, CHECKS)
        assert (new.width, new.height) == image.size
        assert np.abs(bytes_of(pixels.decode(new.data)).astype(int) - RGB).mean() < 3, path


@given(st.binary(max_size=80), st.sampled_from(["", "II*\0", "MM\0*", "Exif\0\0II*\0\x08\0\0\0"]))
@settings(max_examples=200, deadline=None)
def test_both_decoders_apply_the_same_orientation_whatever_the_exif(junk, start):
    data = with_exif(JPEG, EXIF + start.encode("latin-1") + junk)
    assert np.array_equal(bytes_of(pixels.decode(data)), decoding.decode(data).permute(1, 2, 0).numpy())


# Metadata of sound files


def test_a_png_with_any_amount_of_metadata_is_accepted():
    deep = RGB.astype(np.uint16) * 257
    long = np.random.default_rng(0).bytes(3_000_000)
    extras = [
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))),
        *(chunk(b"tEXt", b"k%d\0" % number + b"x" * 900_000) for number in range(80)),
        chunk(b"iTXt", b"b\0\0\0\0\0" + long),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(5_000_000))),
        chunk(b"eXIf", block(1) + long),
        chunk(b"prIV", long),
    ]
    for data in (png(RGB, 8, 2, *extras), png(deep, 16, 2, *extras), png(RGB, 8, 2, *extras, interlaced=True)):
        assert np.array_equal(bytes_of(pixels.decode(inspection.check(data, "a.png", CHECKS).data)), RGB)


def test_the_documentation_lists_every_kind_of_file():
    page = (Path(__file__).parents[3] / "docs/images.md").read_text()
    for word in ("palette", "CMYK", "Lab", "planes", "signed", "float", "white-is-zero", "12", "value_range", "PFM"):
        assert word in page
