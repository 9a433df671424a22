"""The next ingest of the same sources: it reads only new files, appends shards, and changes none that exist."""

import logging
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from rootstock.config import params
from rootstock.dataset import shards
from rootstock.ingest import near_duplicates
from rootstock.ingest.ingest import IngestResult
from rootstock.system import roots
from rootstock.system.errors import SourceError
from tests.images import encoded, nearly, picture, put, put_classes


def test_a_second_ingest_of_the_same_files_writes_nothing(store, photos):
    store.ingest(photos)
    times, content = store.times(), store.bytes()
    assert store.ingest(photos) == IngestResult(images=15, new=0, rejected=0, changed=False)
    assert (store.times(), store.bytes()) == (times, content)


def test_images_that_a_restricted_run_could_not_read_are_ingested_by_the_next_run(store, photos, tmp_path):
    rows = "".join(f"{path},{path.parent.name}\n" for path in sorted(photos.rglob("*.png")))
    elsewhere = put_classes(tmp_path / "elsewhere", {"ants": 1})
    rows += f"{elsewhere}/ants/00.png,ants\n".replace("00.png", next(elsewhere.rglob("*.png")).name)
    put(photos / "list.csv", f"path,label\n{rows}".encode())
    put(next(elsewhere.rglob("*.png")), encoded(picture(77)))
    with roots.restricted_to([str(photos)]):
        assert store.ingest(photos / "list.csv") == IngestResult(images=15, new=15, rejected=1, changed=True)
    assert store.ingest(photos / "list.csv") == IngestResult(images=16, new=1, rejected=0, changed=True)


def test_a_second_ingest_of_the_same_files_imports_neither_pandas_nor_torch(store, photos):
    store.ingest(photos)
    assert store.start_ingest(photos).communicate()[0].startswith("0 [] ")


def test_a_layout_is_logged_at_the_first_ingest_and_when_it_has_changed(store, photos, caplog):
    caplog.set_level(logging.INFO)
    said = []
    for yaks in (0, 0, 6):
        for number in range(yaks):
            put(photos / "yaks" / f"{number}.png", 900 + number)
        store.ingest(photos)
        said.append([line for line in caplog.messages if "class folders" in line])
        caplog.clear()
    assert [len(lines) for lines in said] == [1, 0, 1] and "yaks" in said[2][0]


def test_only_new_files_are_read(store, photos):
    store.ingest(photos)
    for path in photos.rglob("*.png"):  # reading these again would add an unknown image
        about = path.stat()
        path.write_bytes(encoded(picture(999))[: about.st_size].ljust(about.st_size, b"\0"))
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    put(photos / "ants" / "new.png", 500)
    assert store.ingest(photos) == IngestResult(images=16, new=1, rejected=0, changed=True)


def test_new_images_form_a_new_batch_in_a_new_shard_and_existing_shards_do_not_change(store, photos):
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


def test_an_image_moved_to_another_class_folder_is_relabelled_without_writing_a_shard(store, photos):
    store.ingest(photos)
    before, times = store.splits, {name: at for name, at in store.times().items() if name.endswith(".tar")}
    (photos / "ants" / "00.png").rename(photos / "bees" / "moved.png")
    assert store.ingest(photos) == IngestResult(images=15, new=0, rejected=0, changed=True)
    assert store.labels["bees/moved.png"] == "bees"
    assert store.splits == before
    assert {name: at for name, at in store.times().items() if name.endswith(".tar")} == times


def test_a_removed_image_leaves_the_manifest_without_writing_a_shard(store, photos):
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


def test_an_unreadable_file_is_tried_again_by_the_next_ingest(store, photos):
    (photos / "ants" / "late.png").symlink_to(photos.parent / "late.png")
    store.ingest(photos)
    times = store.times()
    assert store.ingest(photos) == IngestResult(images=15, new=0, rejected=1, changed=False)
    assert store.times() == times
    put(photos.parent / "late.png", 700)
    assert store.ingest(photos) == IngestResult(images=16, new=1, rejected=0, changed=True)


def test_a_changed_limit_applies_to_known_images_too(store, photos):
    put(photos / "ants" / "small.png", picture(800, 20, 20))
    put(photos / "ants" / "misnamed.jpg", encoded(picture(801)))
    assert store.ingest(photos, accept_wrong_extension=True).images == 17
    before = store.splits
    assert store.ingest(photos, min_side=21).images == 15
    assert store.rejected == {"ants/small.png": "too_small", "ants/misnamed.jpg": "wrong_extension"}
    assert store.ingest(photos, accept_wrong_extension=True) == IngestResult(images=17, new=0, rejected=0, changed=True)
    assert store.splits == before


def test_after_an_error_a_repaired_source_is_ingested_without_reading_its_files_again(store, photos):
    put_classes(photos, {"hornets": 2}, first=300)
    with pytest.raises(SourceError):
        store.ingest(photos)
    put(photos / "hornets" / "third.png", 310)
    assert store.ingest(photos) == IngestResult(images=18, new=1, rejected=0, changed=True)
    assert set(store.manifest["batch"]) == {1}


def test_an_embedded_sample_is_ingested_and_not_written_again_in_another_clone(store):
    sample = params.Source(path="sample:printed", domain="printed")
    assert store.ingest(sample) == IngestResult(images=880, new=880, rejected=0, changed=True)
    before = store.bytes()
    assert store.ingest(sample).changed is False
    shutil.rmtree(store.scratch)
    assert store.ingest(sample).changed is False
    assert not (store.scratch / "sample").exists()
    assert store.bytes() == before


# Missing shards


def test_missing_shards_are_packed_again_from_the_source_with_the_same_splits(store, photos):
    store.ingest(photos)
    before = store.splits
    shutil.rmtree(store.images)
    assert store.ingest(photos).new == 15
    assert store.splits == before
    assert set(store.manifest["batch"]) == {1}


def test_missing_shards_are_an_error_if_the_source_is_unreachable(store, photos):
    store.ingest(photos)
    shutil.rmtree(store.images)
    shutil.rmtree(photos)
    with pytest.raises(SourceError, match=r"000000-\w+.tar does not exist, nor do the source images: .*dvc pull"):
        store.ingest(photos)


def test_near_duplicates_of_a_second_delivery_are_found_without_comparing_earlier_images_again(
    store, photos, monkeypatch
):
    put(next(photos.iterdir()) / "first.png", picture(500))
    store.ingest(photos)
    monkeypatch.setattr(near_duplicates, "_all_links", lambda *_: pytest.fail("all hashes are compared again"))
    put(next(photos.iterdir()) / "twin.png", nearly(picture(500)))
    store.ingest(photos)
    group_of = store.manifest.assign(name=store.manifest["path"].map(lambda path: Path(path).name)).set_index("name")
    assert group_of.loc["twin.png", "group_id"] == group_of.loc["first.png", "group_id"]
    assert store.summary["near_duplicates"] == {"groups": 1, "images": 2}


def test_images_that_leave_the_dataset_are_counted_by_source(store, tmp_path, photos, caplog):
    more = params.Source(path=str(put_classes(tmp_path / "more", {"ants": 3, "bees": 3}, first=200)), domain="meadow")
    store.ingest(photos, more)
    assert "left the dataset" not in caplog.text
    (photos / "ants" / "00.png").unlink()
    store.ingest(photos, more)
    assert "1 image of photos has left the dataset" in caplog.text
    store.ingest(photos)
    assert "6 images of more have left the dataset: it is no longer in ingest.sources" in caplog.text
