"""How files are packed: large images are downscaled and damaged ones kept only where that is set, in bounded memory and
time."""

import shutil
import time
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rootstock.dataset import shards
from rootstock.images import inspection, pixels
from tests.archive_files import archived
from tests.image_checks import png_by_hand
from tests.image_writers import chunk
from tests.images import encoded, picture, put
from tests.store import Store


def test_images_larger_than_max_side_are_downscaled_and_keep_the_id_of_the_original_file(store, tmp_path):
    for label in ("ants", "bees"):
        for number in range(3):
            path = tmp_path / "photos" / label / f"{number}.jpg"
            put(path, picture(number if label == "ants" else 10 + number, 300, 200), quality=90)
    store.ingest(tmp_path / "photos", max_side=100)
    manifest = store.manifest
    assert set(manifest["width"]) == {100}
    assert set(manifest["height"]) == {67}
    with shards.Reader(store.images) as reader:
        for row in manifest.itertuples():
            assert pixels.decode(reader.read(row.shard, row.offset, row.size)).size == (100, 67)
            assert row.image_id == inspection.image_id((tmp_path / "photos" / row.path).read_bytes())
    assert store.ingest(tmp_path / "photos", max_side=100).new == 0
    shutil.rmtree(store.scratch)  # as in another clone, which only has the ledger
    assert store.ingest(tmp_path / "photos", max_side=100).new == 0


def test_damaged_files_are_rejected_and_named_or_kept_if_the_user_sets_so(store, photos, caplog):
    whole = encoded(picture(999, 200, 200), "JPEG", quality=95)
    put(photos / "ants/hurt.jpg", whole[: len(whole) // 2] + b"\xff\xd9")
    assert store.ingest(photos).images == 15
    assert store.rejected == {"ants/hurt.jpg": "damaged"}
    assert "1 damaged images are rejected" in caplog.text and "ants/hurt.jpg (Corrupt JPEG data" in caplog.text
    assert "damaged" not in store.summary
    assert store.ingest(photos, damaged="keep").images == 16
    assert store.summary["damaged"] == 1 and "1 damaged images are kept: ants/hurt.jpg" in caplog.text
    assert store.ingest(photos).images == 15
    assert store.rejected == {"ants/hurt.jpg": "damaged"}


# Memory and time


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    peak = {}
    for count in (30, 300):
        photos = tmp_path / f"photos{count}"
        for number in range(count):
            put(photos / ("ants" if number % 2 else "bees") / f"{number}.bmp", picture(number, 400, 300))
        ingest = Store(tmp_path / f"store{count}").start_ingest(photos, shard_mb=8)
        peak[count] = int(ingest.communicate()[0].split()[-1])
    assert sum(path.stat().st_size for path in photos.rglob("*.bmp")) > 100 * 2**20
    assert peak[300] < peak[30] + 30  # MiB


def put_tiny(folder: Path, numbers: range) -> None:
    """Write images of 8 x 8 random pixels, every one different, of twenty classes."""
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        put(folder / f"class-{number % 20:02d}/{number}.bmp", Image.fromarray(pixels))


def bytes_each(peak: dict[int, int]) -> float:
    """Return what an image takes, from the peak in MiB of two ingests by their number of images."""
    few, many = sorted(peak)
    return (peak[many] - peak[few]) * 2**20 / (many - few)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_image_takes_few_hundred_bytes_of_memory_at_first_in_a_delivery_and_when_nothing_is_new(tmp_path):
    peak: dict[str, dict[int, int]] = {"first": {}, "delivery": {}, "nothing new": {}}
    for count in (12_000, 72_000):
        photos, store = tmp_path / f"photos{count}", Store(tmp_path / f"store{count}")
        put_tiny(photos, range(count))
        for run, more in (("first", 0), ("delivery", 100), ("nothing new", 0)):
            put_tiny(photos, range(count, count + more))
            new, *_, kept = store.start_ingest(photos, shard_mb=1).communicate()[0].split()
            assert int(new) == (count if run == "first" else more)
            peak[run][count] = int(kept)
    for run, of in peak.items():
        assert bytes_each(of) < 400, f"{run}: {bytes_each(of):.0f} bytes"  # about 200, and some megabytes that vary


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["list.csv", "list.parquet", "photos.tar"])
def test_a_row_of_a_table_or_a_member_of_a_tar_takes_few_hundred_bytes_of_memory(tmp_path, name):
    peak: dict[str, dict[int, int]] = {"first": {}, "nothing new": {}}
    put_tiny(tmp_path / "photos", range(72_000))
    photos = {path.relative_to(tmp_path).as_posix(): path for path in (tmp_path / "photos").rglob("*.bmp")}
    for count in (12_000, 72_000):
        source, store = tmp_path / str(count) / name, Store(tmp_path / f"store{count}")
        some = dict(islice(photos.items(), count))
        if name.startswith("photos"):
            archived(source, {path: file.read_bytes() for path, file in some.items()})
        else:
            rows = pa.table({"path": [f"../{path}" for path in some], "label": [path.split("/")[1] for path in some]})
            source.parent.mkdir()
            (pq.write_table if name.endswith("parquet") else pyarrow.csv.write_csv)(rows, source)
        for run in peak:
            new, *_, kept = store.start_ingest(source, shard_mb=1).communicate()[0].split()
            assert int(new) == (count if run == "first" else 0)
            peak[run][count] = int(kept)
    for run, of in peak.items():
        assert bytes_each(of) < 450, f"{run}: {bytes_each(of):.0f} bytes"  # 200 to 300, and some megabytes that vary


def of_one_colour(width: int, height: int, bits: int, colour: int, value: bytes) -> bytes:
    """Write a PNG of a few hundred kilobytes, however large it is."""
    line = b"\0" + value * (width * bits * {0: 1, 2: 3, 4: 2, 6: 4}[colour] // 8 // len(value))
    packer = zlib.compressobj(9)
    packed = b"".join([packer.compress(line) for _ in range(height)] + [packer.flush()])
    return png_by_hand(width, height, bits, colour, packed)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_largest_accepted_images_of_each_bit_depth_stay_within_the_documented_memory(store, photos):
    deepest = {"deep": (16, 6, 10_000), "deep2": (16, 6, 9_999)}  # two cores may decode one each
    for name, (bits, colour, height) in {"grey": (16, 0, 10_000), "rgba": (8, 6, 10_000), **deepest}.items():
        put(photos / f"ants/{name}.png", of_one_colour(10_000, height, bits, colour, b"\x80\x01"))
    peak = int(store.start_ingest(photos).communicate()[0].split()[-1])
    assert peak < 2048 + 400  # MiB: 2 GiB, and 4 bytes for each of 100 megapixels


@pytest.mark.timeout(120)
def test_files_that_would_take_minutes_to_decode_are_rejected(store, photos):
    large = encoded(Image.new("L", (6000, 6000), 128), "JPEG", progressive=True)
    end = large.rfind(b"\xff\xd9")
    scan = large[large.rfind(b"\xff\xda", 0, end) : end]
    put(photos / "ants/scans.jpg", large[:end] + scan * 2000 + large[end:])
    put(photos / "ants/segments.jpg", large[:2] + b"\xff\xe5\0\2" * 100_000 + large[2:])
    put(photos / "ants/chunks.png", encoded(picture(1))[:33] + chunk(b"tEXt", b"") * 300_000 + encoded(picture(1))[33:])
    put(photos / "bees/comment.ppm", b"P6\n" + b"#\n" * 40_000_000 + b"20 20\n255\n" + bytes(1200))
    put(photos / "bees/gif.gif", encoded(picture(3), "GIF")[:13] + b"\x21\xfe\x01a\0" * 20_000_000)
    begin = time.monotonic()
    store.ingest(photos, max_decode_seconds=3)
    assert time.monotonic() - begin < 90
    assert {"ants/scans.jpg", "ants/segments.jpg", "ants/chunks.png"} <= {
        path for path, reason in store.rejected.items() if reason == "too_costly"
    }
    assert {"bees/comment.ppm", "bees/gif.gif"} <= store.rejected.keys()
