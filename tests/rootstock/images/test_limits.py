"""Small files that would take much memory or time to decode: both are bounded, whatever a header says."""

import io
import struct
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rootstock.images import inspection, integrity, pnm
from rootstock.images.inspection import Checks, Reason, Rejected
from rootstock.images.tiff import read as directory
from tests.image_writers import tiff
from tests.images import encoded, picture

CHECKS = Checks(8, 100, None, False, value_range=(0, 255))


def why_not(data: bytes, checks: Checks = CHECKS) -> Reason | None:
    try:
        inspection.check(data, "a", checks)
    except Rejected as rejected:
        return rejected.reason
    return None


def peak_of(data: bytes) -> int:
    """Return the peak memory of checking a file, in bytes."""
    tracemalloc.start()
    inspection.check(data, "a", CHECKS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(("magic", "digits", "most"), [(b"P1", b"01", 3), (b"P2", b"7 7 ", 5), (b"P3", b"7 " * 6, 9)])
def test_a_plain_portable_map_of_one_line_is_read_in_pieces(magic, digits, most, monkeypatch):
    monkeypatch.setattr(pnm, "PIECE_BYTES", 2**12)
    head = magic + b" 300 300 " + (b"" if magic == b"P1" else b"255 ")
    assert peak_of(head + digits * (300 * 300 // 2)) < most * 2**20


def test_a_comment_in_a_plain_portable_map_may_be_longer_than_a_piece():
    data = b"P2 8 8 255\n" + b"3 " * 30 + b"#" + b" 9" * 2**20 + b"\n" + b"3 " * 34
    seen = np.asarray(Image.open(io.BytesIO(inspection.check(data, "a", CHECKS).data)))
    assert (seen == 3).all()


@pytest.mark.parametrize(("bits", "compression"), [(8, 1), (8, 8), (16, 1), (16, 8)])
def test_a_tiff_of_60_000_strips_is_checked_in_seconds(bits, compression):
    data = tiff(np.zeros((60_000, 16)), bits, rows=1, compression=compression)
    begin = time.thread_time()
    assert why_not(data) is None
    assert time.thread_time() - begin < 10


def saying(data: bytes, **numbers: int) -> bytes:
    """Change what a TIFF of one strip says of itself."""
    tags = {"width": 256, "height": 257, "rows": 278, "size": 279}
    for name, number in numbers.items():
        at = data.index(struct.pack("<HHI", tags[name], 4, 1)) + 8
        data = data[:at] + struct.pack("<I", number) + data[at + 4 :]
    return data


def test_a_tiff_whose_strips_share_their_bytes_is_too_costly():
    data = tiff(np.random.default_rng(0).integers(0, 9999, (8, 400)), 16, rows=1, compression=8)
    says = directory(data)
    first, most = says.offsets[0], says.ends - says.offsets[0]
    for before, after in ((says.offsets, [first] * 8), (says.sizes, [most] * 8)):
        data = data.replace(struct.pack("<8I", *before), struct.pack("<8I", *after))
    assert why_not(data) is Reason.TOO_COSTLY


@pytest.mark.parametrize("compression", [1, 8])
def test_a_tiff_cut_anywhere_after_its_directory_is_truncated(compression):
    whole = tiff(np.random.default_rng(0).integers(0, 9999, (80, 400)), 16, rows=8, compression=compression)
    says = directory(whole)
    body = struct.unpack_from("<I", whole, 4)[0]
    pixels, rest = whole[8:body], whole[body:]
    behind = [at + len(rest) for at in says.offsets]
    shifted = rest.replace(struct.pack("<10I", *says.offsets), struct.pack("<10I", *behind))
    entries = struct.unpack_from("<H", shifted, 0)[0]
    for at in range(2, 2 + 12 * entries, 12):  # what lies elsewhere lies so much before where it lay
        kind, count, place = struct.unpack_from("<HII", shifted, at + 2)
        if {3: 2, 4: 4}[kind] * count > 4:
            shifted = shifted[: at + 8] + struct.pack("<I", place - body + 8) + shifted[at + 12 :]
    data = whole[:4] + struct.pack("<I", 8) + shifted + pixels
    assert why_not(data) is None
    for share in (0.9, 0.5, 0.2):
        assert why_not(data[: int(len(data) * share)]) is Reason.TRUNCATED


@pytest.mark.parametrize(("bits", "format", "samples"), [(64, 3, 1), (16, 1, 4), (32, 1, 3)])
def test_a_tiff_with_a_strip_beyond_the_memory_limit_is_too_costly(bits, format, samples):
    data = tiff(np.zeros((8, 8, samples)), bits, format, 1, compression=8, extra=(0,) * (samples - 1))
    assert why_not(saying(data, width=9000, height=9000, rows=9000)) is Reason.TOO_COSTLY


def test_the_limit_on_scans_of_a_jpeg_applies_inside_a_tiff_too():
    whole = encoded(Image.new("L", (4000, 3000), 128), "JPEG", progressive=True)
    scan = whole[whole.rfind(b"\xff\xda") : -2]
    for scans, reason in ((0, None), (60, Reason.TOO_COSTLY)):
        jpeg = whole[:-2] + scan * scans + whole[-2:]
        head = tiff(np.zeros((1, 1)), 8, compression=7)
        at = 8 + len(jpeg) + len(jpeg) % 2
        directory = head[struct.unpack_from("<I", head, 4)[0] :]
        data = head[:4] + struct.pack("<I", at) + jpeg.ljust(at - 8, b"\0") + directory
        data = saying(data, width=4000, height=3000, rows=3000, size=len(jpeg))
        assert why_not(data, replace(CHECKS, seconds=3)) is reason


def test_a_gif_with_too_many_blocks_is_too_costly(monkeypatch):
    monkeypatch.setattr(integrity, "MOST_BLOCKS", 1000)
    gif = encoded(picture(3), "GIF")
    at = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    for comments, reason in ((400, None), (2000, Reason.TOO_COSTLY)):
        assert why_not(gif[:at] + b"\x21\xfe\x01a\0" * comments + gif[at:]) is reason
