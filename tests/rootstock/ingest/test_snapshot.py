"""What ingest writes: a row of the manifest for each image, a row for each rejected file with its reason, and counts in
the summary; the same images give the same bytes."""

import shutil
import zipfile
from collections import Counter

import pyarrow.parquet as pq

from rootstock.config import params
from rootstock.dataset import shards, summaries, tables
from rootstock.images import inspection
from rootstock.ingest.ingest import IngestResult
from tests.images import encoded, nearly, picture, put, put_classes
from tests.store import CLASSES, Store


def test_each_image_has_one_row_in_the_manifest_which_locates_its_bytes(store, photos):
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


def test_the_summary_counts_images_classes_splits_domains_and_rejected_files(store, photos):
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


def test_a_split_that_is_asked_for_later_moves_no_image_and_a_warning_says_how_to_draw_anew(store, tmp_path, caplog):
    photos = put_classes(tmp_path / "photos", {"ants": 60, "bees": 60})
    store.ingest(photos, near_duplicate_bits=0)
    before = store.splits
    caplog.clear()
    store.ingest(photos, near_duplicate_bits=0, split={"val": 0.16, "test": 0.16})  # close to what is there
    assert "ingest.split asks" not in caplog.text
    store.ingest(photos, near_duplicate_bits=0, split={"val": 0.15, "test": 0.4})
    assert store.splits == before
    said = (
        "ingest.split asks for 45.0 / 15.0 / 40.0 % (train, val, test), but 120 images keep the splits that they were"
    )
    assert said in caplog.text and "remove data/dataset" in caplog.text


def test_the_summary_names_classes_that_are_missing_from_a_split(store, tmp_path):
    photos = put_classes(tmp_path / "photos", {"other": 20})
    for copy in range(6):
        put(photos / "frames" / f"{copy}.png", nearly(picture(50), copy))
    store.ingest(photos)
    assert store.summary["without"] == {"train": [], "val": ["frames"], "test": ["frames"]}
    assert (
        summaries.describe_missing_classes(store.summary) == "no test images of frames, no validation images of frames"
    )


# Rejected files


def test_bad_files_are_rejected_with_a_reason_each_and_the_others_are_ingested(store, photos):
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


def test_of_two_files_with_the_same_bytes_the_second_is_rejected_as_a_duplicate(store, photos):
    shutil.copy(photos / "ants" / "03.png", photos / "ants" / "again.png")
    assert store.ingest(photos).images == 15
    assert store.rejected == {"ants/again.png": "duplicate"}


def test_an_image_with_two_labels_is_rejected_under_both(store, photos):
    shutil.copy(photos / "ants" / "03.png", photos / "bees" / "ant.png")
    assert store.ingest(photos) == IngestResult(images=14, new=14, rejected=2, changed=True)
    assert store.rejected == dict.fromkeys(["ants/03.png", "bees/ant.png"], "conflicting_label")
    (photos / "bees" / "ant.png").unlink()
    assert store.ingest(photos) == IngestResult(images=15, new=0, rejected=0, changed=True)  # it was packed all along
    assert len(shards.names(store.images)) == 1


def test_a_copy_with_a_wrong_extension_is_rejected_whichever_file_is_read_first(store, photos):
    for name in ("00.jpg", "zz.jpg"):
        shutil.copy(photos / "ants" / "00.png", photos / "ants" / name)
    store.ingest(photos)
    assert store.rejected == dict.fromkeys(["ants/00.jpg", "ants/zz.jpg"], "wrong_extension")
    put(photos / "ants" / "later.jpg", (photos / "bees" / "00.png").read_bytes())
    store.ingest(photos)
    assert store.rejected["ants/later.jpg"] == "wrong_extension"


def test_images_of_a_folder_linked_into_two_classes_are_rejected_under_both(store, tmp_path, photos):
    put_classes(tmp_path / "pool", {"x": 4}, first=200)
    for label in ("bees", "wasps"):
        (photos / label / "linked").symlink_to(tmp_path / "pool" / "x")
    assert store.ingest(photos).images == 15
    assert store.rejected == {
        f"{label}/linked/{number:02d}.png": "conflicting_label" for label in ("bees", "wasps") for number in range(4)
    }


# Several sources


def test_images_have_the_domain_of_their_source_and_a_copy_that_of_the_first_source(store, tmp_path, photos):
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


def test_images_of_a_source_that_was_removed_leave_the_manifest_and_return_to_their_splits_with_it(
    store, tmp_path, photos
):
    more = put_classes(tmp_path / "more", CLASSES, first=100)
    store.ingest(photos, more)
    before = store.splits
    store.ingest(photos)
    assert set(store.manifest["source"]) == {"photos"}
    store.ingest(photos, more)
    assert store.splits == before


# Reproducible bytes


def test_the_same_images_give_the_same_bytes_in_any_folder(tmp_path):
    stores = [Store(tmp_path / place / "store") for place in ("one", "two")]
    for store in stores:
        photos = put_classes(store.root.parent / "photos", CLASSES)
        put(photos / "ants" / "bad.png", b"x")
        store.ingest(photos, shard_mb=0.01)
        put_classes(photos, {"bees": 9}, first=50)
        store.ingest(photos, shard_mb=0.01)
    assert stores[0].bytes() == stores[1].bytes()
    assert len(shards.names(stores[0].images)) > 3


def test_no_versioned_file_contains_a_path_of_the_machine(store, tmp_path, photos):
    rows = "".join(f"{path},{path.parent.name}\n" for path in sorted(photos.rglob("*.png")))
    put(tmp_path / "list.csv", ("path,label\n" + rows).encode())
    more = put_classes(tmp_path / "more", CLASSES, first=100)
    store.ingest(tmp_path / "list.csv", f"file://{more}")
    assert set(store.manifest["source"]) == {"list.csv", "more"}
    tables = [pq.read_table(path).to_pandas().to_csv() for path in store.dataset.glob("*.parquet")]
    assert str(tmp_path) not in "".join([*tables, (store.dataset / "summary.json").read_text()])
