"""What a model sees is checked as by ingest, and is what ingest would pack; an intact JPEG is decoded once for both."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from rootstock.images import decoding, inspection, jpeg, pixels
from rootstock.images.inspection import Checks, Rejected
from tests.image_files import every_kind
from tests.images import encoded, picture
from tests.rootstock.images.test_damage import HARMED, HARMS, JPEGS, KEEP, PHOTO, SOUND

CHECKS = Checks(8, 100, None, False)
SMALLER = Checks(8, 100, 64, False)
KINDS = {f"{kind.name}.{kind.extension}": kind.data for kind in every_kind()}
FILES = {
    **KINDS,
    **{f"{kind}.jpg": data for kind, data in (JPEGS | SOUND).items()},
    **{f"{kind}, {harm}.jpg": HARMS[harm](JPEGS[kind], len(JPEGS[kind]) // 2) for kind, harm in HARMED},
    "a png.jpg": encoded(PHOTO, "PNG"),
    "no image.jpg": b"no image",
    "empty.jpg": b"",
}
WHOLE = encoded(picture(18, 80, 48), "JPEG")


def packed(data: bytes, name: str, checks: Checks) -> np.ndarray | str:
    """The pixels that a network sees of what ingest packs, or why it packs nothing."""
    try:
        new = inspection.check(data, name, checks)
        if new.deep and new.deep.unclear:
            raise inspection.RangeUnknown(new.deep)
    except Rejected as rejected:
        return f"{rejected.reason}: {rejected.detail}"
    return decoding.decode(new.data).numpy()


def seen(data: bytes, name: str, checks: Checks, *, in_full: bool = True) -> np.ndarray | str:
    """The same of what a model is given."""
    try:
        file = inspection.check_input(data, name, checks, in_full=in_full)
    except Rejected as rejected:
        return f"{rejected.reason}: {rejected.detail}"
    return decoding.decode_opened(file).numpy()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("checks", [CHECKS, KEEP, SMALLER], ids=["", "damaged images are kept", "stored smaller"])
@pytest.mark.parametrize("name", FILES)
def test_a_model_sees_what_ingest_packs(name, checks):
    for in_full in (True, False):
        assert np.array_equal(seen(FILES[name], name, checks, in_full=in_full), packed(FILES[name], name, checks))


@given(st.floats(0, 1), st.binary(min_size=1, max_size=4), st.integers(0, 800))
@settings(max_examples=300, deadline=None)
def test_it_does_whatever_bytes_are_wrong(where, wrong, cut):
    data = bytearray(WHOLE)
    at = int(where * (len(data) - 1))
    data[at : at + len(wrong)] = wrong
    damaged = bytes(data[: len(data) - cut])
    assert np.array_equal(seen(damaged, "a.jpg", CHECKS), packed(damaged, "a.jpg", CHECKS))


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey"])
def test_an_intact_jpeg_is_decoded_once(kind, monkeypatch):
    decoded = []
    decode = jpeg.decode
    monkeypatch.setattr(jpeg, "decode", lambda data: decoded.append(data) or decode(data))
    monkeypatch.setattr(jpeg, "thumbnail", None)
    monkeypatch.setattr(Image.Image, "load", None)
    file = inspection.check_input(JPEGS[kind], "a.jpg", CHECKS, in_full=True)
    assert decoding.decode_opened(file).shape == (3, 200, 300)
    assert decoded == [JPEGS[kind]]


def test_a_large_jpeg_is_not_held_decoded(monkeypatch):
    monkeypatch.setattr(inspection, "MOST_DECODED_BYTES", 3 * 80 * 48 - 1)
    file = inspection.check_input(WHOLE, "a.jpg", CHECKS, in_full=True)
    assert file.decoded is None
    assert np.array_equal(decoding.decode_opened(file).numpy(), packed(WHOLE, "a.jpg", CHECKS))


def test_only_what_is_needed_in_full_is_decoded_in_full(monkeypatch):
    monkeypatch.setattr(jpeg, "decode", None)
    assert inspection.check_input(WHOLE, "a.jpg", CHECKS, in_full=False).decoded is None
    assert pixels.open_file(WHOLE).decoded is None
