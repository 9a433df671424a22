"""Ingest: only new files are read, assignments never change, a killed run loses nothing, and the output bytes are
reproducible."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from rootstock.config import params
from rootstock.dataset import shards, tables
from rootstock.images import inspection, pixels
from rootstock.images.perceptual_hash import perceptual_hashes, thumbnail
from rootstock.ingest import folders
from rootstock.ingest.ingest import IngestResult
from rootstock.system import files
from rootstock.system.errors import DamagedError, SourceError
from tests.image_files import chunk
from tests.images import encoded, nearly, picture, put, put_classes
from tests.store import Store

CLASSES = {"ants": 6, "bees": 5, "wasps": 4}
# Peak memory of this process; getrusage would report that of the parent process, if larger.
PEAK_MIB = 'int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024'
# An ingest in its own process; arguments: the store, the photos, the shard size.
ALONE = """
import sys
from pathlib import Path
from rootstock.config import params
from rootstock.ingest.ingest import ingest
root, source = Path(sys.argv[1]), params.Source(path=sys.argv[2], domain="garden")
settings = params.Ingest(sources=(source,), shard_mb=float(sys.argv[3]))
taken = ingest(settings, 0, root / "images", root / "dataset", root / "scratch")
heavy = {"pandas", "torch", "sklearn", "prefect", "dvc"} & set(sys.modules)
print(taken.new, sorted(heavy), PEAK_MIB)
""".replace("PEAK_MIB", PEAK_MIB)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def photos(tmp_path):
    return put_classes(tmp_path / "photos", CLASSES)


# Output


def test_every_image_is_in_the_manifest_once_and_its_bytes_are_where_it_says(store, photos):
    assert store.ingest(photos) == IngestResult(images=15, new=15, rejected=0, changed=True)
    manifest = store.manifest
    assert manifest.columns.tolist() == tables.SCHEMAS[tables.MANIFEST].names
    with shards.Reader(store.images) as reader:
        for row in manifest.itertuples():
            data = reader.read(row.shard, row.offset, row.size)
            assert data == (photos / row.path).read_bytes()
            assert row.image_id == inspection.image_id(data)
    assert store.labels == {str(path.relative_to(photos)): path.parent.name for path in photos.rglob("*.png")}
    for column, values in {
        "source": {"photos"}, "domain": {"garden"}, "format": {"PNG"}, "width": {32}, "height": {32}, "batch": {1},
        "split": {"train", "val", "test"},
    }.items():  # fmt: skip
        assert set(manifest[column]) == values
    assert dict(zip(manifest["label"], manifest["class_index"], strict=True)) == {"ants": 0, "bees": 1, "wasps": 2}
    assert manifest["group_id"].nunique() == 15


def test_the_summary_counts_what_there_is(store, photos):
    put(photos / "ants" / "broken.png", b"not a png")
    put(photos / "bees" / "cut.jpg", encoded(picture(90), "JPEG")[:-200])
    put(photos / "notes.txt", b"hello")
    store.ingest(photos)
    summary = store.summary
    assert summary["images"] == 15
    assert summary["classes"] == ["ants", "bees", "wasps"]
    assert sum(summary["splits"].values()) == 15
    assert {label: sum(counts.values()) for label, counts in summary["by_class"].items()} == CLASSES
    assert summary["domains"] == {"garden": 15}
    assert summary["rejected"] == {"not_an_image": 1, "truncated": 1, "undecodable": 1}
    layout = {"layout": "class_folders", "classes_at": "", "classes": ["ants", "bees", "wasps"]}
    source = {"name": "photos", "domain": "garden", "images": 15, "rejected": 3, "notes": [], "layout": layout}
    assert summary["sources"] == [source]
    (shard,) = shards.names(store.images)
    size = shards.path_of(store.images, shard).stat().st_size
    assert summary["shards"] == [{"name": shard, "images": 15, "bytes": size}]


def test_bad_files_are_rejected_with_their_reasons_and_the_run_goes_on(store, photos):
    put(photos / "ants" / "garbage.jpg", b"\x01\x02" * 500)
    put(photos / "ants" / "empty.png", b"")
    put(photos / "ants" / "text.jpg", b"<html>404</html>")
    put(photos / "ants" / "cut.png", encoded(picture(91))[:500])
    put(photos / "ants" / "really_a_png.jpg", encoded(picture(92)))
    put(photos / "ants" / "tiny.png", picture(93, 7, 30))
    put(photos / "ants" / "vast.bmp", picture(94, 1500, 700))
    put(photos / "ants" / "notes.txt", b"hello")
    put(photos / "stray.png", 95)
    (photos / "ants" / "link.png").symlink_to("nowhere")
    assert store.ingest(photos, max_megapixels=1) == IngestResult(images=15, new=15, rejected=10, changed=True)
    assert store.rejected == {
        "ants/cut.png": "truncated",
        "ants/empty.png": "not_an_image",
        "ants/garbage.jpg": "undecodable",
        "ants/link.png": "unreadable",
        "ants/notes.txt": "not_an_image",
        "ants/really_a_png.jpg": "wrong_extension",
        "ants/text.jpg": "undecodable",
        "ants/tiny.png": "too_small",
        "ants/vast.bmp": "too_large",
        "stray.png": "no_label",
    }
    table = pq.read_table(store.dataset / "rejected.parquet").to_pandas()
    assert table.columns.tolist() == ["source", "path", "domain", "label", "reason"]
    assert set(table["source"]) == {"photos"}


def test_an_unsafe_archive_member_is_rejected_and_counted(store, tmp_path, photos):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("../evil.png", b"x")
        for path in sorted(photos.rglob("*.png")):
            archive.write(path, path.relative_to(photos))
    assert store.ingest(tmp_path / "photos.zip").images == 15
    assert store.rejected == {"../evil.png": "unsafe_path"}
    assert store.summary["rejected"] == {"unsafe_path": 1}


def test_an_image_that_is_there_twice_is_kept_once(store, photos):
    shutil.copy(photos / "ants" / "03.png", photos / "ants" / "again.png")
    assert store.ingest(photos).images == 15
    assert store.rejected == {"ants/again.png": "duplicate"}


def test_an_image_under_two_labels_is_rejected_under_both(store, photos):
    shutil.copy(photos / "ants" / "03.png", photos / "bees" / "ant.png")
    assert store.ingest(photos).images == 14
    assert store.rejected == dict.fromkeys(["ants/03.png", "bees/ant.png"], "conflicting_label")
    (photos / "bees" / "ant.png").unlink()
    assert store.ingest(photos).images == 15  # its bytes were packed all along
    assert len(shards.names(store.images)) == 1


def test_a_copy_under_a_wrong_extension_is_rejected_whichever_is_read_first(store, photos):
    for name in ("00.jpg", "zz.jpg"):
        shutil.copy(photos / "ants" / "00.png", photos / "ants" / name)
    store.ingest(photos)
    assert store.rejected == dict.fromkeys(["ants/00.jpg", "ants/zz.jpg"], "wrong_extension")
    put(photos / "ants" / "later.jpg", (photos / "bees" / "00.png").read_bytes())
    store.ingest(photos)
    assert store.rejected["ants/later.jpg"] == "wrong_extension"


def test_larger_photos_are_stored_smaller_where_that_is_asked_for(store, tmp_path):
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


# Splits


def test_folders_give_the_split_and_the_summary_says_what_was_made_of_them(store, tmp_path):
    put_classes(tmp_path / "photos" / "train", {"ants": 10, "bees": 10})
    put_classes(tmp_path / "photos" / "val", {"ants": 3, "bees": 3}, first=50)
    store.ingest(tmp_path / "photos")
    manifest = store.manifest
    folder = manifest["path"].str.split("/").str[0]
    assert set(manifest.loc[folder == "val", "split"]) == {"test"}
    assert Counter(manifest.loc[folder == "train", "split"]) == {"train": 16, "val": 4}
    assert store.summary["sources"][0]["notes"] == [
        "no test folder: val becomes the test split, and validation is drawn from train"
    ]


def test_near_duplicates_share_a_split_and_a_group(store, tmp_path):
    photos = put_classes(tmp_path / "photos", {"ants": 20, "bees": 20})
    for number in range(20):
        put(photos / "ants" / f"{number:02d}b.png", nearly(picture(number)))
    store.ingest(photos)
    groups = store.manifest.groupby("group_id")
    assert (groups["split"].nunique() == 1).all()
    assert (groups.size() == 2).sum() == 20
    assert store.summary["near_duplicates"] == {"groups": 20, "images": 40}


def test_near_duplicates_in_train_and_test_folders_are_both_tested_on(store, tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        put_classes(tmp_path / "photos" / split, {"ants": 3, "bees": 3}, first=10 * number)
    twin = put(tmp_path / "photos" / "test" / "ants" / "twin.png", nearly(picture(1)))
    store.ingest(tmp_path / "photos")
    splits = dict(zip(store.manifest["path"], store.manifest["split"], strict=True))
    assert splits["train/ants/01.png"] == splits[f"test/ants/{twin.name}"] == "test"
    assert any("1 images are in another split than their folder" in n for n in store.summary["sources"][0]["notes"])


def three_in_a_row() -> list[Image.Image]:
    """Find pictures of which the second is within 4 bits of both others, but these are not of each other."""
    blends = [Image.blend(picture(1), picture(2), share / 200) for share in range(200)]
    hashes = perceptual_hashes([thumbnail(image) for image in blends])
    middle = max(at for at, phash in enumerate(hashes) if (phash ^ hashes[0]).bit_count() <= 4)
    last = next(at for at, phash in enumerate(hashes) if (phash ^ hashes[0]).bit_count() > 4 and at > middle)
    assert (hashes[middle] ^ hashes[last]).bit_count() <= 4
    return [blends[0], blends[middle], blends[last]]


def test_a_new_image_near_to_two_splits_is_rejected_and_none_of_the_old_moves(store, tmp_path):
    first, bridge, last = three_in_a_row()
    photos = tmp_path / "photos"
    for number, split in enumerate(("train", "val", "test")):
        put_classes(photos / split, {"ants": 3, "bees": 3}, first=100 + 10 * number)
    put(photos / "train" / "ants" / "first.png", first)
    put(photos / "test" / "ants" / "last.png", last)
    store.ingest(photos)
    before = store.splits
    put(photos / "train" / "ants" / "bridge.png", bridge)
    for _ in range(2):
        assert store.ingest(photos).images == 20
        assert store.splits == before
        assert store.rejected == {"train/ants/bridge.png": "straddles_splits"}
    (photos / "test" / "ants" / "last.png").unlink()  # its split is kept, as it may come back
    store.ingest(photos)
    assert store.rejected == {"train/ants/bridge.png": "straddles_splits"}


def test_adding_images_moves_none_and_gives_the_new_ones_their_share(store, photos):
    store.ingest(photos)
    before = store.splits
    put_classes(photos, {"ants": 40}, first=200)
    (photos / "bees" / "00.png").unlink()
    store.ingest(photos)
    after = store.splits
    assert {image: split for image, split in after.items() if image in before} == {
        image: split for image, split in before.items() if image in after
    }
    assert Counter(store.manifest.loc[store.manifest["label"] == "ants", "split"]) == {"train": 28, "val": 6, "test": 6}


def test_an_image_that_was_away_comes_back_to_its_split(store, photos):
    store.ingest(photos)
    before, paths = store.splits, [photos / "ants" / "00.png", photos / "bees" / "01.png", photos / "wasps" / "02.png"]
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    assert store.ingest(photos).images == 12
    for path, content in zip(paths, contents, strict=True):
        put(path.with_stem("back"), content)
    assert store.ingest(photos) == IngestResult(images=15, new=0, rejected=0, changed=True)
    assert store.splits == before


# The next run


def test_a_second_look_writes_nothing(store, photos):
    store.ingest(photos)
    times, content = store.times(), store.bytes()
    assert store.ingest(photos) == IngestResult(images=15, new=0, rejected=0, changed=False)
    assert (store.times(), store.bytes()) == (times, content)


def alone(store: Store, photos: Path, shard_mb: float = 256) -> subprocess.Popen:
    command = [sys.executable, "-c", ALONE, str(store.root), str(photos), str(shard_mb)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_second_look_imports_neither_pandas_nor_torch(store, photos):
    store.ingest(photos)
    assert alone(store, photos).communicate()[0].startswith("0 [] ")


def test_only_what_is_new_is_read(store, photos):
    store.ingest(photos)
    for path in photos.rglob("*.png"):  # reading these again would add an unknown image
        about = path.stat()
        path.write_bytes(encoded(picture(999))[: about.st_size].ljust(about.st_size, b"\0"))
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    put(photos / "ants" / "new.png", 500)
    assert store.ingest(photos) == IngestResult(images=16, new=1, rejected=0, changed=True)


def test_new_images_make_a_new_shard_in_a_new_batch_and_no_old_byte_changes(store, photos):
    store.ingest(photos)
    before = store.bytes()
    put_classes(photos, {"hornets": 3}, first=300)
    assert store.ingest(photos).new == 3
    after = store.bytes()
    assert {name: after[name] for name in before if name.endswith(".tar")} == {
        name: data for name, data in before.items() if name.endswith(".tar")
    }
    assert Counter(store.manifest["batch"]) == {1: 15, 2: 3}
    assert store.summary["batches"] == {"1": 15, "2": 3}
    assert len(shards.names(store.images)) == 2


def test_a_moved_image_is_relabelled_and_no_shard_is_touched(store, photos):
    store.ingest(photos)
    before, times = store.splits, {name: at for name, at in store.times().items() if name.endswith(".tar")}
    (photos / "ants" / "00.png").rename(photos / "bees" / "moved.png")
    assert store.ingest(photos) == IngestResult(images=15, new=0, rejected=0, changed=True)
    assert store.labels["bees/moved.png"] == "bees"
    assert store.splits == before
    assert {name: at for name, at in store.times().items() if name.endswith(".tar")} == times


def test_a_removed_image_leaves_the_manifest_and_no_shard_is_touched(store, photos):
    store.ingest(photos)
    times = {name: at for name, at in store.times().items() if name.endswith(".tar")}
    (photos / "ants" / "00.png").unlink()
    assert store.ingest(photos) == IngestResult(images=14, new=0, rejected=0, changed=True)
    assert "ants/00.png" not in store.labels
    assert {name: at for name, at in store.times().items() if name.endswith(".tar")} == times


def test_a_file_with_new_content_is_a_new_image(store, photos):
    store.ingest(photos)
    old = store.manifest.set_index("path").loc["ants/00.png", "image_id"]
    put(photos / "ants" / "00.png", 600)
    assert store.ingest(photos) == IngestResult(images=15, new=1, rejected=0, changed=True)
    row = store.manifest.set_index("path").loc["ants/00.png"]
    assert row["image_id"] != old
    assert row["batch"] == 2


def test_a_file_that_could_not_be_read_is_tried_again(store, photos):
    (photos / "ants" / "late.png").symlink_to(photos.parent / "late.png")
    store.ingest(photos)
    times = store.times()
    assert store.ingest(photos) == IngestResult(images=15, new=0, rejected=1, changed=False)
    assert store.times() == times
    put(photos.parent / "late.png", 700)
    assert store.ingest(photos) == IngestResult(images=16, new=1, rejected=0, changed=True)


def test_a_changed_rule_is_held_to_old_images_too(store, photos):
    put(photos / "ants" / "small.png", picture(800, 20, 20))
    put(photos / "ants" / "misnamed.jpg", encoded(picture(801)))
    assert store.ingest(photos, accept_wrong_extension=True).images == 17
    before = store.splits
    assert store.ingest(photos, min_side=21).images == 15
    assert store.rejected == {"ants/small.png": "too_small", "ants/misnamed.jpg": "wrong_extension"}
    assert store.ingest(photos, accept_wrong_extension=True) == IngestResult(images=17, new=0, rejected=0, changed=True)
    assert store.splits == before


# A layout is kept


def test_the_layout_is_said_and_kept_and_travels_with_the_data_set(store, tmp_path, caplog):
    photos = put_classes(tmp_path / "field" / "2023", {"ants": 6, "bees": 6}).parent
    caplog.set_level("INFO")
    store.ingest(photos)
    assert "field: class folders under 2023/; 2 classes: ants, bees" in caplog.messages
    assert store.summary["sources"][0]["layout"]["classes_at"] == "2023"
    before = store.bytes()
    put_classes(photos / "2024", {"ants": 6, "bees": 6}, first=100)
    shutil.rmtree(store.scratch)  # as in another clone
    with pytest.raises(SourceError, match=r"12 of 24 images are outside its class folders under 2023/"):
        store.ingest(photos)
    assert store.bytes() == before
    source = params.Source(path=str(photos), domain="garden", classes_at="*")
    assert store.ingest(source).images == 24
    assert store.summary["classes"] == ["ants", "bees"]
    content = store.bytes()
    assert store.ingest(source) == IngestResult(images=24, new=0, rejected=0, changed=False)
    shutil.rmtree(photos)
    assert store.ingest(source).changed is False
    assert store.bytes() == content


def test_a_data_set_that_kept_no_layout_keeps_its_labels_and_has_one_from_then_on(store, tmp_path):
    photos = put_classes(tmp_path / "photos" / "2023", {"ants": 6, "bees": 6}).parent
    store.ingest(photos)
    labels, splits = store.labels, store.splits
    summary = store.summary
    del summary["sources"][0]["layout"]
    (store.dataset / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    put_classes(photos / "2024", {"ants": 3}, first=100)
    store.ingest(photos)
    assert labels.items() <= store.labels.items()
    assert splits.items() <= store.splits.items()
    assert store.summary["sources"][0]["layout"]["layout"] == "class_folders"


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_class_that_is_renamed_or_many_images_with_another_label_stop_unless_that_is_meant(store, tmp_path, kind):
    photos = put_classes(tmp_path / "photos", {"ants": 30, "bees": 30})

    def source() -> Path:
        return Path(shutil.make_archive(str(tmp_path / "p"), "zip", photos)) if kind == "zip" else photos

    store.ingest(source())
    before = store.bytes()
    (photos / "ants").rename(photos / "emmets")
    with pytest.raises(
        SourceError, match=r"30 of 60 known images would change their label \(ants -> emmets: 30; e.g. emmets/"
    ):
        store.ingest(source())
    assert {name: data for name, data in store.bytes().items() if name.startswith("dataset")} == {
        name: data for name, data in before.items() if name.startswith("dataset")
    }
    assert store.ingest(source(), allow_relabel=True) == IngestResult(images=60, new=0, rejected=0, changed=True)
    for path in sorted((photos / "emmets").iterdir())[:7]:
        path.rename(photos / "bees" / f"ant {path.name}")
    with pytest.raises(
        SourceError, match=r"7 of 60 known images would change their label.*ingest.allow_relabel to true"
    ):
        store.ingest(source())
    for path in sorted((photos / "bees").glob("ant *"))[3:]:
        path.rename(photos / "emmets" / path.name.removeprefix("ant "))
    assert store.ingest(source()).images == 60  # three are a correction
    assert Counter(store.manifest["label"]) == {"bees": 33, "emmets": 27}


def test_a_better_spelling_of_a_label_is_no_other_label(store, photos):
    store.ingest(photos)
    (photos / "ants").rename(photos / "Ants ")
    assert store.ingest(photos).images == 15
    assert set(store.manifest["label"]) == {"Ants", "bees", "wasps"}


def test_rows_of_a_table_are_corrected_without_asking_but_not_most_of_them(store, photos):
    def table(**new: str) -> Path:
        rows = [(path, new.get(path.parent.name, path.parent.name)) for path in sorted(photos.rglob("*.png"))]
        text = "".join(f"{path.relative_to(photos)},{label}\n" for path, label in rows)
        return put(photos / "list.csv", ("path,label\n" + text).encode())

    store.ingest(table())
    store.ingest(table(ants="emmets"))
    assert set(store.manifest["label"]) == {"emmets", "bees", "wasps"}
    with pytest.raises(SourceError, match=r"list.csv: 11 of 15 known images would change their label"):
        store.ingest(table(ants="0", bees="1"))
    assert store.ingest(table(ants="0", bees="1"), allow_relabel=True).images == 15


def test_a_layout_that_a_person_gives_may_change_labels(store, tmp_path):
    photos = tmp_path / "photos"
    for number, place in enumerate(("left/a", "left/b", "right/a", "right/b")):
        put_classes(photos / place, {"": 5}, first=10 * number)
    with pytest.raises(SourceError, match="contain the same folders"):
        store.ingest(photos)
    for at, classes in ((".", ["left", "right"]), ("*", ["a", "b"])):
        store.ingest(params.Source(path=str(photos), domain="garden", classes_at=at))
        assert store.summary["classes"] == classes


@pytest.mark.parametrize("other", ["Ants", "ants ", "a\u00adnts"])
def test_labels_of_two_sources_that_a_person_reads_as_one_stop(store, tmp_path, photos, other):
    more = put_classes(tmp_path / "more", {other: 5, "flies": 5}, first=100)
    if other == "ants ":
        assert store.ingest(photos, more).images == 25
        assert store.summary["classes"] == ["ants", "bees", "flies", "wasps"]
        return
    with pytest.raises(
        SourceError, match=r"These labels look like the same class: .*\((more|photos): .*\((more|photos): "
    ):
        store.ingest(photos, more)
    store.ingest(photos)
    with pytest.raises(SourceError, match="These labels look like the same class"):
        store.ingest(photos, more)


def test_one_folder_under_two_labels_is_rejected_under_both(store, tmp_path, photos):
    put_classes(tmp_path / "pool", {"x": 4}, first=200)
    for label in ("bees", "wasps"):
        (photos / label / "linked").symlink_to(tmp_path / "pool" / "x")
    assert store.ingest(photos).images == 15
    assert store.rejected == {
        f"{label}/linked/{number:02d}.png": "conflicting_label" for label in ("bees", "wasps") for number in range(4)
    }


def test_a_class_that_is_in_one_split_alone_is_said(store, tmp_path):
    photos = put_classes(tmp_path / "photos", {"other": 20})
    for copy in range(6):
        put(photos / "frames" / f"{copy}.png", nearly(picture(50), copy))
    store.ingest(photos)
    assert store.summary["without"] == {"train": [], "val": ["frames"], "test": ["frames"]}
    assert tables.describe_missing_classes(store.summary) == "no test images of frames, no validation images of frames"


# Several sources


def test_two_sources_bring_their_domains_and_a_copy_belongs_to_the_first(store, tmp_path, photos):
    more = put_classes(tmp_path / "more", {"ants": 3, "bees": 3}, first=100)
    shutil.copy(photos / "ants" / "00.png", more / "ants" / "copy.png")
    shutil.copy(photos / "wasps" / "00.png", more / "ants" / "wasp.png")
    store.ingest(photos, params.Source(path=str(more), domain="meadow"))
    assert Counter(store.manifest["domain"]) == {"garden": 14, "meadow": 6}
    assert store.rejected == {
        "ants/copy.png": "duplicate",
        "ants/wasp.png": "conflicting_label",
        "wasps/00.png": "conflicting_label",
    }
    assert [source["images"] for source in store.summary["sources"]] == [14, 6]
    assert len(shards.names(store.images)) == 2  # each source begins a shard


def test_a_domain_that_arrives_later_moves_nothing(store, tmp_path, photos):
    store.ingest(photos)
    before = store.splits
    more = params.Source(path=str(put_classes(tmp_path / "more", CLASSES, first=100)), domain="meadow")
    store.ingest(photos, more)
    assert before.items() <= store.splits.items()
    assert set(store.manifest.loc[store.manifest["domain"] == "meadow", "split"]) == {"train", "val", "test"}


def test_a_source_that_is_no_longer_named_takes_its_images_along(store, tmp_path, photos):
    more = put_classes(tmp_path / "more", CLASSES, first=100)
    store.ingest(photos, more)
    before = store.splits
    store.ingest(photos)
    assert set(store.manifest["source"]) == {"photos"}
    store.ingest(photos, more)
    assert store.splits == before


# Too few images


def test_a_class_of_two_images_is_an_error_that_counts_them(store, photos):
    put_classes(photos, {"hornets": 2}, first=300)
    put(photos / "hornets" / "broken.png", b"x")
    with pytest.raises(
        SourceError, match=r"'hornets' has 2 \(1 undecodable, e.g. hornets/b.*\). A class needs at least 3"
    ):
        store.ingest(photos)
    assert not (store.dataset / "manifest.parquet").exists()


def linked_to_nowhere(folder: Path) -> None:
    files.remove(folder)
    folder.symlink_to("a/disk/that/is/not/mounted")


SPOILT = {
    "of a kind that is not read": (lambda path: path.rename(path.with_suffix(".heic")), "an_image, e.g. wasps/00.heic"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:200]), "truncated, e.g. wasps/00.png"),
    "misnamed": (lambda path: path.rename(path.with_suffix(".jpg")), "wrong_extension, e.g. wasps/00.jpg"),
    "too small": (lambda path: put(path, picture(1, 6, 6)), "too_small, e.g. wasps/00.png"),
    "gone": (Path.unlink, "its folder is empty"),
    "junk": (lambda path: path.rename(path.with_name(f"._{path.name}")), "its folder is empty"),
    "behind a link to nowhere": (lambda path: linked_to_nowhere(path.parent), "or a broken link"),
    "another class's": (lambda path: put(path, picture(int(path.stem))), "conflicting_label, e.g. wasps/00.png"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_a_class_of_no_usable_image_is_an_error_that_names_the_reasons_and_a_file(store, photos, how):
    store.ingest(photos)
    before = store.bytes()
    spoil, said = SPOILT[how]
    for path in sorted((photos / "wasps").iterdir()):
        spoil(path)
    with pytest.raises(SourceError, match=rf"'wasps' has 0 \(.*{said}.*exclude the class"):
        store.ingest(photos)
    assert store.bytes() == before
    files.remove(photos / "wasps")
    assert set(store.ingest(photos) and store.summary["classes"]) == {"ants", "bees"}


@pytest.mark.parametrize("name", ["bees copy", "bees - Copy", "Copy of bees", "bees (1)", "Kopie von bees"])
@pytest.mark.parametrize("same", [True, False])
def test_a_copied_class_folder_is_named_with_its_original(store, photos, name, same):
    if same:
        shutil.copytree(photos / "bees", photos / name)
    else:
        put_classes(photos, {name: 5}, first=400)
    with pytest.raises(SourceError) as error:
        store.ingest(photos)
    assert f"The class {name!r} (photos: {name}/00.png) looks like a copy of 'bees'" in str(error.value)
    assert ("5 of its images have both labels (conflicting_label)" in str(error.value)) == same


def test_a_single_class_is_an_error(store, tmp_path):
    with pytest.raises(SourceError, match=r"only one class, 'ants' \(5 images\); a classifier needs two"):
        store.ingest(put_classes(tmp_path / "photos", {"ants": 5}))


def test_nothing_usable_is_an_error_that_counts_the_reasons(store, tmp_path):
    put(tmp_path / "photos" / "ants" / "1.png", b"x")
    put(tmp_path / "photos" / "ants" / "2.txt", b"x")
    put(tmp_path / "photos" / "bees" / "3.png", b"x")
    with pytest.raises(SourceError, match=r"3 files \(2 undecodable, e.g. ants/1.png, 1 not_an_image, e.g. ants/2"):
        store.ingest(tmp_path / "photos")


def test_an_empty_folder_is_an_error(store, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(SourceError, match=r"no usable image in 0 files"):
        store.ingest(tmp_path / "photos")


def test_a_class_with_nothing_to_train_on_is_an_error(store, tmp_path):
    put_classes(tmp_path / "photos" / "train", {"ants": 3, "bees": 3})
    put_classes(tmp_path / "photos" / "test", {"ants": 3, "wasps": 3}, first=20)
    with pytest.raises(SourceError, match=r"no image of 'wasps' is in the train split"):
        store.ingest(tmp_path / "photos")


def test_nothing_to_test_on_is_an_error(store, tmp_path):
    for number, label in enumerate(("ants", "bees")):
        for copy in range(3):
            put(tmp_path / "photos" / label / f"{copy}.png", nearly(picture(number), copy))
    with pytest.raises(SourceError, match=r"the (val|test) split has no images: too few"):
        store.ingest(tmp_path / "photos")


def test_after_an_error_the_repaired_source_is_taken_in_without_reading_it_again(store, photos):
    put_classes(photos, {"hornets": 2}, first=300)
    with pytest.raises(SourceError):
        store.ingest(photos)
    put(photos / "hornets" / "third.png", 310)
    assert store.ingest(photos) == IngestResult(images=18, new=1, rejected=0, changed=True)
    assert set(store.manifest["batch"]) == {1}


def test_a_source_that_is_away_is_an_error_the_first_time(store, tmp_path):
    with pytest.raises(SourceError, match=r"photos does not exist"):
        store.ingest(tmp_path / "photos")


@pytest.mark.parametrize("another_clone", [False, True])
def test_a_source_that_is_away_later_is_a_warning_and_nothing_changes(store, photos, caplog, another_clone):
    for path, content in {"ants/bad.png": b"x", "ants/copy.png": (photos / "ants" / "00.png").read_bytes()}.items():
        put(photos / path, content)
    store.ingest(photos)
    before, times = store.bytes(), store.times()
    photos.rename(photos.with_name("unplugged"))
    if another_clone:
        shutil.rmtree(store.scratch)
    for _ in range(2):
        caplog.clear()
        assert store.ingest(photos) == IngestResult(images=15, new=0, rejected=2, changed=False)
        assert "photos does not exist" in caplog.text
        assert "Its 15 earlier images are kept." in caplog.text
        assert (store.bytes(), store.times()) == (before, times)


def test_an_embedded_sample_is_a_source_and_is_not_written_again_in_another_clone(store):
    sample = params.Source(path="sample:printed", domain="printed")
    assert store.ingest(sample) == IngestResult(images=880, new=880, rejected=0, changed=True)
    before = store.bytes()
    assert store.ingest(sample).changed is False
    shutil.rmtree(store.scratch)
    assert store.ingest(sample).changed is False
    assert not (store.scratch / "sample").exists()
    assert store.bytes() == before


def test_an_archive_and_a_manifest_that_are_away_leave_nothing_changed_either(store, tmp_path, photos):
    rows = [
        f"{path.relative_to(photos)},{path.parent.name},{'meadow' if number % 2 else ''},"
        + ("train", "val", "test", "")[number % 4]
        for number, path in enumerate(sorted(photos.rglob("*.png")))
    ]
    rows += ["gone.png,ants,,", "ants/00.png,,,"]
    put(photos / "list.csv", "\n".join(["path,label,domain,split", *rows]).encode())
    more = put_classes(tmp_path / "more", CLASSES, first=100)
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("zz/../../evil.png", b"x")
        archive.writestr("ants/a.txt", b"x")
        for path in sorted(more.rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(more))
    sources = [photos / "list.csv", params.Source(path=str(tmp_path / "more.zip"), domain="shed")]
    store.ingest(*sources)
    before = store.bytes()
    assert set(store.manifest["domain"]) == {"garden", "meadow", "shed"}
    for path in (photos, tmp_path / "more.zip"):
        path.rename(path.with_name("unplugged " + path.name))
    shutil.rmtree(store.scratch)
    store.ingest(*sources)
    assert store.bytes() == before


def test_the_sources_that_are_there_go_on_while_another_is_away(store, tmp_path, photos):
    more = put_classes(tmp_path / "more", CLASSES, first=100)
    store.ingest(photos, more)
    shutil.rmtree(photos)
    put(more / "ants" / "new.png", 500)
    assert store.ingest(photos, more) == IngestResult(images=31, new=1, rejected=0, changed=True)


def test_a_mistake_in_a_source_is_an_error_even_if_it_was_taken_in_before(store, photos):
    rows = "".join(f"{path.relative_to(photos)},{path.parent.name}\n" for path in sorted(photos.rglob("*.png")))
    put(photos / "list.csv", ("path,label\n" + rows).encode())
    store.ingest(photos / "list.csv")
    put(photos / "list.csv", ("path,class\n" + rows).encode())
    with pytest.raises(SourceError, match="no column 'label'"):
        store.ingest(photos / "list.csv")


def test_a_source_that_lost_more_than_half_is_an_error_unless_that_is_meant(store, photos):
    store.ingest(photos)
    before = store.bytes()
    for label in ("ants", "bees"):
        for path in sorted((photos / label).iterdir())[3:]:
            path.unlink()
    shutil.rmtree(photos / "wasps")
    with pytest.raises(SourceError, match=r"photos had 15 images and now has 6.*ingest.allow_shrink to true"):
        store.ingest(photos)
    assert store.bytes() == before
    assert store.ingest(photos, allow_shrink=True).images == 6


def test_a_source_may_lose_half(store, tmp_path):
    photos = put_classes(tmp_path / "photos", {"ants": 6, "bees": 6})
    store.ingest(photos)
    for label in ("ants", "bees"):
        for path in sorted((photos / label).iterdir())[3:]:
            path.unlink()
    assert store.ingest(photos).images == 6


def test_shards_that_are_missing_are_packed_again_with_their_splits_where_the_source_is_there(store, photos):
    store.ingest(photos)
    before = store.splits
    shutil.rmtree(store.images)
    assert store.ingest(photos).new == 15
    assert store.splits == before
    assert set(store.manifest["batch"]) == {1}


def test_shards_that_are_missing_are_an_error_where_the_source_is_away(store, photos):
    store.ingest(photos)
    shutil.rmtree(store.images)
    shutil.rmtree(photos)
    with pytest.raises(SourceError, match=r"000000-\w+.tar does not exist, nor do the source images: .*dvc pull"):
        store.ingest(photos)


def page_of(number: int):
    """Fill a page of an SQLite file with noise; pages are numbered from the end."""

    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            size = file.seek(0, 2)
            file.seek(size - 4096 * number)
            file.write(np.random.default_rng(number).bytes(4096))

    return damage


def foreign_tables(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript("create table notes (what text); create table looked (one int, two int)")


def changed_by(statement: str):
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(statement)

    return change


HARMS_TO_A_SCAN = {
    "another kind of file": lambda path: path.write_bytes(b"no database" * 1000),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its last page": lambda path: path.write_bytes(path.read_bytes()[:-4096]),
    **{f"noise in page {number} from the end": page_of(number) for number in range(1, 13)},
    "another program's tables": foreign_tables,
    "an unknown reason": changed_by("update looked set reason = 'because', image_id = null"),
    "a hash that is none": changed_by("update packed set phash = 'half'"),
    "a text that is none": changed_by("update looked set stamp = cast(x'ff' as text)"),
    "one column emptied": changed_by("update packed set phash = null"),
}


@pytest.mark.parametrize("harm", HARMS_TO_A_SCAN)
def test_a_scan_cache_that_something_happened_to_costs_another_look_and_nothing_else(store, photos, harm):
    store.ingest(photos)
    put(next(photos.iterdir()) / "new.png", 777)  # otherwise little of it is read
    kept = store.bytes()
    HARMS_TO_A_SCAN[harm](store.scratch / "scan.sqlite")
    assert store.ingest(photos) == IngestResult(images=16, new=1, rejected=0, changed=True)
    now = store.bytes()
    assert {name: now[name] for name in kept if name.endswith(".tar")} == {
        name: data for name, data in kept.items() if name.endswith(".tar")
    }
    assert store.ingest(photos) == IngestResult(images=16, new=0, rejected=0, changed=False)


# The same bytes


def test_the_same_images_give_the_same_bytes_in_another_folder(tmp_path):
    stores = [Store(tmp_path / place / "store") for place in ("one", "two")]
    for store in stores:
        photos = put_classes(store.root.parent / "photos", CLASSES)
        put(photos / "ants" / "bad.png", b"x")
        store.ingest(photos, shard_mb=0.01)
        put_classes(photos, {"bees": 9}, first=50)
        store.ingest(photos, shard_mb=0.01)
    assert stores[0].bytes() == stores[1].bytes()
    assert len(shards.names(stores[0].images)) > 3


def test_nothing_versioned_knows_where_it_was_made(store, tmp_path, photos):
    rows = "".join(f"{path},{path.parent.name}\n" for path in sorted(photos.rglob("*.png")))
    put(tmp_path / "list.csv", ("path,label\n" + rows).encode())
    more = put_classes(tmp_path / "more", CLASSES, first=100)
    store.ingest(tmp_path / "list.csv", f"file://{more}")
    assert set(store.manifest["source"]) == {"list.csv", "more"}
    tables = [pq.read_table(path).to_pandas().to_csv() for path in store.dataset.glob("*.parquet")]
    assert str(tmp_path) not in "".join([*tables, (store.dataset / "summary.json").read_text()])


@given(st.lists(st.lists(st.tuples(st.sampled_from(["ants", "bees"]), st.integers(0, 11)), max_size=8), max_size=3))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_and_goes_an_image_keeps_its_split(tmp_path_factory, changes):
    root = tmp_path_factory.mktemp("history")
    store, photos = Store(root / "store"), put_classes(root / "photos", {"ants": 3, "bees": 3}, first=100)
    known: dict[str, str] = {}
    for change in [[], *changes]:
        for label, number in change:  # remove it if it exists, else add it
            path = photos / label / f"{number}.png"
            if path.exists():
                path.unlink()
            else:
                put(path, number + (20 if label == "bees" else 0))
        store.ingest(photos, allow_shrink=True)
        splits = store.splits
        assert all(known.get(image, split) == split for image, split in splits.items())
        known |= splits


# Killed


def test_a_killed_ingest_goes_on_and_ends_in_the_same_bytes(tmp_path):
    photos = put_classes(tmp_path / "photos", {"ants": 150, "bees": 150})
    for number in range(40):  # rejected and duplicate files must not shift anything either
        put(
            photos / "ants" / f"{4 * number:02d}x.png",
            b"x" if number % 2 else (photos / "bees" / "07.png").read_bytes(),
        )
    undisturbed, killed = Store(tmp_path / "undisturbed"), Store(tmp_path / "killed")
    undisturbed.ingest(photos, shard_mb=0.03)
    total = len(shards.names(undisturbed.images))
    assert total > 20
    chance = random.Random(0)
    for share in (0.1, 0.3, 0.5, 0.8, 1.0):
        process = alone(killed, photos, 0.03)
        while process.poll() is None and len(shards.names(killed.images)) < share * total:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.01 if share < 1 else 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(shards.names(killed.images)) > total / 2  # the kills came late enough to mean something
    killed.ingest(photos, shard_mb=0.03)
    assert killed.bytes() == undisturbed.bytes()


def test_a_shard_written_just_before_a_kill_is_written_again(store, tmp_path, photos):
    whole = Store(tmp_path / "whole")
    whole.ingest(photos, shard_mb=0.01)
    store.images.mkdir(parents=True)
    for shard in shards.names(whole.images)[:1]:  # written but not recorded
        shutil.copy(shards.path_of(whole.images, shard), store.images)
    put(store.images / "next.tar.tmp", b"an open shard")
    put(store.dataset / "manifest.parquet.tmp", b"half a manifest")
    store.ingest(photos, shard_mb=0.01)
    assert store.bytes() == whole.bytes()


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_a_run_killed_while_its_ledger_is_put_in_place_makes_no_second_draw(
    moved, store, tmp_path, photos, monkeypatch
):
    whole = Store(tmp_path / "whole")
    whole.ingest(photos, shard_mb=0.01)
    assert len(list((whole.dataset / "ledger.parquet").iterdir())) > 3
    move, done = Path.replace, []

    def killed(path: Path, target: Path) -> Path:
        if target.parent.name == "ledger.parquet":
            done.append(path)
            if len(done) > moved:
                raise KeyboardInterrupt
        return move(path, target)

    with monkeypatch.context() as until_killed, pytest.raises(KeyboardInterrupt):
        until_killed.setattr(Path, "replace", killed)
        store.ingest(photos, shard_mb=0.01)
    store.ingest(photos, shard_mb=0.01)
    assert store.bytes() == whole.bytes()


@pytest.mark.parametrize("torn", [False, True])
def test_a_file_that_changes_while_it_is_read_is_what_was_read_and_is_looked_at_again(torn, store, photos, monkeypatch):
    changing, new = photos / "ants" / "00.png", encoded(picture(900))
    was = changing.read_bytes()
    read = folders.Files._load

    def written_to_meanwhile(self: folders.Files, path: str) -> bytes:
        data = read(self, path)
        if not path.endswith("ants/00.png"):
            return data
        changing.write_bytes(new)
        return data[: len(data) // 2] if torn else data

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(folders.Files, "_load", written_to_meanwhile)
        store.ingest(photos)
    ids = {hashlib.sha256(data).hexdigest() for data in (was, new)}
    assert store.rejected == ({"ants/00.png": "truncated"} if torn else {})
    assert len(ids & set(store.manifest["image_id"])) == (0 if torn else 1)
    store.ingest(photos)
    assert store.rejected == {} and hashlib.sha256(new).hexdigest() in set(store.manifest["image_id"])
    with shards.Reader(store.images) as reader:
        for row in store.manifest.itertuples():
            assert hashlib.sha256(reader.read(row.shard, row.offset, row.size)).hexdigest() == row.image_id


def test_a_run_killed_between_two_files_of_the_data_set_is_completed(store, photos):
    store.ingest(photos)
    before = store.bytes()
    put_classes(photos, {"ants": 9}, first=300)
    store.ingest(photos)
    after = store.bytes()
    new = after.keys() - before.keys()
    assert sorted(name.rpartition("/")[0] for name in new) == [
        "dataset/ledger.parquet", "dataset/manifest.parquet", "images"
    ]  # fmt: skip
    for name in [name for name in after if name.startswith("dataset/")]:
        (store.dataset.parent / name).unlink()
        if name in before:
            (store.dataset.parent / name).write_bytes(before[name])
        store.ingest(photos)
        assert store.bytes() == after


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("table", ["ledger.parquet", "manifest.parquet"])
def test_a_table_of_another_data_set_is_refused_or_made_anew(store, photos, tmp_path, seed, table):
    """A table of other images, or of the same ones with another seed, so that splits differ."""
    store.ingest(photos)
    before = store.bytes()
    other, theirs = Store(tmp_path / "other"), photos
    if not seed:
        theirs = put_classes(tmp_path / "theirs", CLASSES, first=500)
    other.ingest(theirs, seed=seed)
    [mine], [foreign] = ((one.dataset / table).iterdir() for one in (store, other))
    mine.write_bytes(foreign.read_bytes())
    try:
        store.ingest(photos)
    except DamagedError as error:
        assert f"{store.dataset}" in str(error)
    else:
        assert store.bytes() == before


def test_a_shard_that_is_not_what_was_packed_stops_the_look_and_whole_ones_are_read_once(store, photos, monkeypatch):
    store.ingest(photos)
    read = []
    real = shards.is_intact
    monkeypatch.setattr(shards, "is_intact", lambda folder, shard: read.append(shard) or real(folder, shard))
    store.ingest(photos)
    assert not read
    [shard] = store.images.iterdir()
    kept = shard.read_bytes()
    shard.write_bytes(kept[:1000] + bytes([kept[1000] ^ 1]) + kept[1001:])
    with pytest.raises(SourceError, match=rf"{shard.name}: its content differs from what was packed.*dvc checkout"):
        store.ingest(photos)
    shard.write_bytes(kept)
    real.cache_clear()
    for _ in range(2):
        assert store.ingest(photos) == IngestResult(images=15, new=0, rejected=0, changed=False)
    assert len(read) == 2


# Memory


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    peak = {}
    for count in (30, 300):
        photos = tmp_path / f"photos{count}"
        for number in range(count):
            put(photos / ("ants" if number % 2 else "bees") / f"{number}.bmp", picture(number, 400, 300))
        peak[count] = int(alone(Store(tmp_path / f"store{count}"), photos, shard_mb=8).communicate()[0].split()[-1])
    assert sum(path.stat().st_size for path in photos.rglob("*.bmp")) > 100 * 2**20
    assert peak[300] < peak[30] + 30  # MiB


# Value ranges


def deep_source(folder: Path, dims: dict[str, float], times: int = 257, kind: type = np.uint16, first: int = 0) -> Path:
    """Write a folder of deep grey TIFFs, `<class>/<nn>.tif`; each class with its own brightness."""
    for label, dim in dims.items():
        for number in range(first, first + 6):
            grey = np.asarray(picture(number + 100 * len(label), 40, 40, "L")).astype(float) * dim
            put(folder / label / f"{number:02d}.tif", encoded(Image.fromarray((grey * times).astype(kind)), "TIFF"))
    return folder


def brightness(store: Store) -> dict[str, float]:
    """Mean pixel value of each class in the shards, of 255."""
    manifest = store.manifest
    places = zip(*(manifest[name] for name in ("shard", "offset", "size", "image_id")), strict=True)
    with shards.Reader(store.images) as reader:
        seen = [np.asarray(pixels.decode(reader.image(*place))).mean() for place in places]
    return manifest.assign(mean=seen).groupby("label")["mean"].mean().to_dict()


def source_with(folder: Path, value_range: tuple[float, float] | None) -> params.Source:
    return params.Source(path=str(folder), domain="garden", value_range=value_range)


@pytest.mark.parametrize(("times", "kind"), [(4, np.uint16), (16, np.uint16), (1, np.float32), (100, np.int32)])
def test_what_files_do_not_tell_of_their_values_is_asked_for_and_then_the_same_for_all(store, tmp_path, times, kind):
    folder = deep_source(tmp_path / "xray", {"dark": 0.3, "bright": 1.0}, times, kind)
    for _ in range(2):  # a run that stopped does not count as an answer
        with pytest.raises(SourceError, match=r"xray: .* have values \(\w+\) from [\d.]+ to [\d.]+; .*Set value_range"):
            store.ingest(folder)
    assert store.ingest(source_with(folder, (0, 255 * times))).new == 12
    seen = brightness(store)
    assert 0.25 < seen["dark"] / seen["bright"] < 0.35
    assert store.summary["sources"][0]["value_range"] == [0, 255 * times]
    before = store.bytes()
    assert not store.ingest(source_with(folder, (0, 255 * times))).changed and store.bytes() == before


def test_sixteen_bits_that_are_used_are_not_asked_for_however_dark_one_class_is(store, tmp_path):
    folder = deep_source(tmp_path / "xray", {"dark": 0.05, "bright": 1.0})
    assert store.ingest(folder).new == 12
    seen = brightness(store)
    assert seen["dark"] / seen["bright"] < 0.06
    assert store.summary["sources"][0]["value_range"] == [0, 65535]
    deep_source(folder, {"dark": 0.05}, first=6)  # later dark ones use the range of the earlier ones
    shutil.rmtree(store.scratch)
    assert store.ingest(folder).new == 6
    assert brightness(store)["dark"] < 10


def test_values_beyond_the_range_that_was_given_are_said(store, tmp_path, caplog):
    folder = deep_source(tmp_path / "xray", {"dark": 0.3, "bright": 1.0}, times=16)
    deep_source(folder, {"dark": 1 / 255}, 1, np.float32, first=6)  # of another dtype, with another range
    store.ingest(source_with(folder, (0, 1)))
    [said] = [record.getMessage() for record in caplog.records if "value_range" in record.getMessage()]
    assert re.search(r"xray: .*\(float32, uint16\) from 0\.\d+ to 4016, but value_range is \[0, 1\]", said)
    caplog.clear()
    shutil.rmtree(store.root)
    store.ingest(source_with(folder, (0, 4095)))
    assert "value_range" not in caplog.text


def test_a_value_range_cannot_be_changed_for_images_that_are_packed(store, tmp_path):
    folder = deep_source(tmp_path / "xray", {"dark": 0.3, "bright": 1.0}, times=16)
    store.ingest(source_with(folder, (0, 4095)))
    with pytest.raises(
        SourceError, match=r"value_range .* is \[0, 1023\], but its images were packed with \[0, 4095\]"
    ):
        store.ingest(source_with(folder, (0, 1023)))
    assert store.ingest(folder).images == 12  # omitted, it keeps its value


def test_images_of_eight_bits_have_no_value_range(store, photos):
    store.ingest(source_with(photos, (0, 4095)))
    assert "value_range" not in store.summary["sources"][0]
    assert store.ingest(source_with(photos, (0, 1023))).images == 15


# Damaged files


def test_damaged_files_are_named_and_are_kept_where_that_is_asked_for(store, photos, caplog):
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


# Limits

LIMITED = """
import sys
from pathlib import Path
from rootstock.dataset import tables
from rootstock.config import params
from rootstock.ingest.ingest import ingest
root, source = Path(sys.argv[1]), params.Source(path=sys.argv[2], domain="garden")
ingest(params.Ingest(sources=(source,)), 0, root / "images", root / "dataset", root / "scratch")
print(PEAK_MIB)
""".replace("PEAK_MIB", PEAK_MIB)


def of_one_colour(width: int, height: int, bits: int, colour: int, value: bytes) -> bytes:
    """Write a PNG of a few hundred kilobytes, however large it is."""
    line = b"\0" + value * (width * bits * {0: 1, 2: 3, 4: 2, 6: 4}[colour] // 8 // len(value))
    packer = zlib.compressobj(9)
    packed = b"".join([packer.compress(line) for _ in range(height)] + [packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_largest_images_of_every_depth_stay_within_the_memory_that_is_promised(store, photos):
    deepest = {"deep": (16, 6, 10_000), "deep2": (16, 6, 9_999)}  # two cores may decode one each
    for name, (bits, colour, height) in {"grey": (16, 0, 10_000), "rgba": (8, 6, 10_000), **deepest}.items():
        put(photos / f"ants/{name}.png", of_one_colour(10_000, height, bits, colour, b"\x80\x01"))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(store.root), str(photos)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 2048 + 400  # MiB: 2 GiB, and 4 bytes for each of 100 megapixels


@pytest.mark.timeout(120)
def test_a_file_that_would_keep_a_core_busy_for_minutes_is_a_row_with_a_reason(store, photos):
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
