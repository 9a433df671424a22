"""Named groups in a dataset: images of a patient, a scene or a camera share a split, permanently."""

import json
import logging
import shutil
from collections import Counter

import pyarrow.parquet as pq
import pytest

from rootstock.dataset import tables
from rootstock.system.errors import SourceError
from tests.deliveries import delivery_in
from tests.images import nearly, picture, put, put_classes
from tests.patients import PATIENT, named, notes_of, put_patients, source


def test_images_with_the_same_group_name_share_split_and_group_id(store, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    store.ingest(source(put_patients(tmp_path / "scans", range(40)), group=PATIENT))
    table = named(store)
    assert (table["group"] == table["path"].str.split("/").str[1]).all()
    assert (table.groupby("group")["group_id"].nunique() == 1).all() and table["group_id"].nunique() == 40
    assert (table.groupby("group")["split"].nunique() == 1).all()
    assert Counter(table.drop_duplicates("group")["split"]) == {"train": 28, "val": 6, "test": 6}
    assert store.summary["groups"] == {"named": 40, "images": 120, "notes": []}
    assert store.summary["near_duplicates"] == {"groups": 0, "images": 0}
    assert "scans: 40 named groups" in caplog.messages
    assert "splits 70.0 / 15.0 / 15.0 % of 120 images, in 40 groups" in caplog.text
    assert "largest deviation of a class from its share: 0.0 points" in caplog.text


def test_a_group_in_train_and_test_folders_goes_to_the_split_of_most_of_its_images_and_the_leak_is_noted(
    store, tmp_path, caplog
):
    photos = tmp_path / "scans"
    for number, split in enumerate(("train", "val", "test")):
        put_patients(photos / split, range(10 * number, 10 * number + 6))
    put(photos / "test" / "ill" / "patient_0" / "late.png", 77)
    put(photos / "train" / "well" / "patient_21" / "early.png", 78)
    store.ingest(source(photos, group=PATIENT))
    splits = named(store).groupby("group")["split"].agg(["first", "nunique"])
    assert (splits["nunique"] == 1).all()
    assert splits.loc["patient_0", "first"] == "train" and splits.loc["patient_21", "first"] == "test"
    leak = (
        "a leak: its own splits share 2 groups, patient_0 (3 train, 1 test), patient_21 (1 train, 3 test); each goes "
        "as a whole to the split of most of its images, or to the one that it already has"
    )
    assert leak in store.summary["sources"][0]["notes"]
    assert f"scans: {leak}" in caplog.messages
    assert "scans: 2 images are in another split than their folder" in caplog.text


def test_a_group_in_the_given_splits_of_two_sources_is_a_leak_too(store, tmp_path, caplog):
    for number, split in enumerate(("train", "val", "test")):
        put_patients(tmp_path / "scans" / split, range(10 * number, 10 * number + 6))
    put_patients(tmp_path / "more" / "test", (3, 40, 41))
    put_patients(tmp_path / "more" / "train", (50, 51))
    for image in (tmp_path / "more").rglob("*.png"):
        image.write_bytes(image.read_bytes() + b" ")  # of its own, not a copy
    store.ingest(source(tmp_path / "scans", group=PATIENT), source(tmp_path / "more", group=PATIENT))
    leak = (
        "a leak: the given splits of several sources share 1 group, patient_3 (3 train, 3 test); each goes as a whole"
    )
    [note] = [note for note in store.summary["groups"]["notes"] if note.startswith("a leak")]
    assert note.startswith(leak) and note in caplog.messages
    assert "its own splits" not in caplog.text


def test_where_all_groups_are_in_train_val_and_test_folders_the_error_names_the_leak(store, tmp_path):
    for split, scans in (("train", 4), ("val", 1), ("test", 2)):
        for patient in range(6):
            for scan in range(scans):
                label = ("ill", "well")[patient % 2]
                put(
                    tmp_path / "scans" / split / label / f"patient_{patient}" / f"{split}_{scan}.png",
                    100 * patient + scan + 10 * len(split),
                )
    with pytest.raises(
        SourceError,
        match=r"the (val|test) split has no images \(42 images in 6 groups\)\. scans: a leak: "
        r"its own splits share 6 groups, patient_0 \(4 train, 1 val, 2 test\), .*or give no splits",
    ):
        store.ingest(source(tmp_path / "scans", group=PATIENT))


def test_a_class_in_fewer_than_three_groups_is_noted(store, tmp_path, caplog):
    photos = put_patients(tmp_path / "scans", range(20))
    put_patients(photos, range(30, 31), labels=("rare",))
    put_patients(photos, range(40, 42), labels=("rarer",))
    store.ingest(source(photos, group=PATIENT))
    said = (
        "'rare' is in 1 group, 'rarer' is in 2 groups: a class needs 3, one each for train, val and test; "
        "a group is in one split."
    )
    assert notes_of(store) == [said] and said in caplog.messages
    assert "rare" in store.summary["without"]["test"] and "rarer" not in store.summary["without"]["test"]


def test_a_dataset_of_two_groups_is_an_error_that_gives_the_number_of_groups(store, tmp_path):
    photos = put_classes(tmp_path / "scans", {"ants": 12, "bees": 12})
    with pytest.raises(SourceError, match=r"val split has no images.* in the same group \(24 images in 2 groups"):
        store.ingest(source(photos, group=r"(?P<group>\d)\d.png$"))  # 0 and 1
    with pytest.raises(SourceError, match="no image"):
        store.ingest(source(photos, group="(?P<group>ants|bees)"))


# Near duplicates


def test_near_duplicates_merge_named_groups_which_the_summary_notes(store, tmp_path, caplog):
    photos = put_patients(tmp_path / "scans", range(30))
    put(photos / "well" / "patient_1" / "twin.png", nearly(picture(2000)))  # of the first scan of patient 2
    put(photos / "ill" / "alone.png", nearly(picture(1001)))  # of a scan of patient 1
    store.ingest(source(photos, group=PATIENT))
    table = named(store)
    joined = table[table["group"].isin(["patient_1", "patient_2"]) | table["path"].str.endswith("alone.png")]
    assert len(joined) == 8 and joined["group_id"].nunique() == joined["split"].nunique() == 1
    assert table["group_id"].nunique() == 29
    assert notes_of(store) == [
        "Near duplicates join 2 named groups into 1, e.g. patient_1 and patient_2; the largest has 2 names and 7 of 92 "
        "images. Blank images in common? Remove those."
    ]
    assert notes_of(store)[0] in caplog.messages
    assert store.summary["near_duplicates"] == {"groups": 2, "images": 4}


def test_copies_of_an_image_merge_the_groups_that_contain_them(store, tmp_path):
    photos = put_patients(tmp_path / "scans", range(20), labels=("ill",))
    put_classes(photos, {"well": 6})
    shutil.copy(photos / "ill" / "patient_3" / "0.png", photos / "ill" / "patient_4" / "copy.png")
    store.ingest(source(photos, group=PATIENT))
    assert named(store).set_index("group").loc[["patient_3", "patient_4"], "group_id"].nunique() == 1


# Later images


def test_a_new_image_joins_its_group_even_if_the_earlier_images_are_gone(store, tmp_path):
    store.ingest(source(put_patients(tmp_path / "scans", range(20)), group=PATIENT))
    before = named(store).groupby("group")["split"].first()
    shutil.rmtree(tmp_path / "scans")
    shutil.rmtree(store.scratch)  # as in another clone, which has only the dataset
    later = tmp_path / "later"
    for patient in range(20):
        put(later / ("ill", "well")[patient % 2] / f"p{patient}.png", 50_000 + patient)
    again = source(later, name="later", group=r"(?P<group>p\d+)")
    store.ingest(source(tmp_path / "scans", group=PATIENT), again)
    assert named(store)["group"].nunique() == 40, "other names are other groups"
    put_patients(tmp_path / "more", range(20, 23))
    for patient in range(20):
        put(tmp_path / "more" / ("ill", "well")[patient % 2] / f"patient_{patient}.png", 70_000 + patient)
    store.ingest(again, source(tmp_path / "more", name="more", group=PATIENT), allow_shrink=True)
    table = named(store)
    new = table[(table["source"] == "more") & table["group"].isin(before.index)]
    assert len(new) == 20 and (new["split"].to_numpy() == before[new["group"]].to_numpy()).all()
    assert "scans" not in set(table["source"])


def test_groups_named_after_splits_were_drawn_move_no_image_which_is_noted(store, tmp_path, caplog):
    photos = put_patients(tmp_path / "scans", range(12), scans=8)
    store.ingest(photos)
    before, plain = store.splits, store.bytes()
    store.ingest(source(photos, group=PATIENT))
    assert store.splits == before
    table = named(store)
    assert table["group_id"].nunique() == 12
    torn = table.groupby("group")["split"].nunique() > 1
    [note] = notes_of(store)
    assert note.startswith(f"{torn.sum()} groups ({8 * torn.sum()} images) in several splits, e.g. that of patient_")
    assert "To keep groups whole, remove data/dataset: the next run draws new splits" in note
    assert note in caplog.messages
    put_patients(photos, range(12), scans=9)
    store.ingest(source(photos, group=PATIENT))
    table = named(store)
    new = table[~table["image_id"].isin(before)]
    counts = table[table["image_id"].isin(before)].groupby(["group", "split"]).size()
    for row in new.itertuples():
        assert counts[row.group, row.split] == counts[row.group].max()
    assert len(new) == 12
    for patient in range(12):
        (photos / ("ill", "well")[patient % 2] / f"patient_{patient}" / "8.png").unlink()
    store.ingest(photos)
    after = store.bytes()
    assert "groups" not in store.summary
    assert after["dataset/summary.json"] != plain["dataset/summary.json"]  # one shard more
    assert {image: store.splits[image] for image in before} == before


def test_after_the_dataset_is_removed_splits_of_whole_groups_are_drawn_without_packing_again(store, tmp_path):
    photos = put_patients(tmp_path / "scans", range(12), scans=8)
    store.ingest(photos)
    store.ingest(source(photos, group=PATIENT))
    shutil.rmtree(store.dataset)
    assert store.ingest(source(photos, group=PATIENT)).new == 0
    assert (named(store).groupby("group")["split"].nunique() == 1).all() and notes_of(store) == []


# Deliveries


def test_delivered_images_join_known_groups_and_later_images_join_theirs(store, tmp_path):
    scans = source(put_patients(tmp_path / "scans", range(20)), group=PATIENT)
    store.ingest(scans)
    for number, patients in enumerate((range(10, 30), range(25, 32))):
        box = tmp_path / f"inbox{number}"  # what is ingested leaves the inbox
        for patient in patients:
            label = ("ill", "well")[patient % 2]
            put(box / "ward" / label / f"patient_{patient}-{number}.png", 40_000 + 100 * number + patient)
        delivery = delivery_in(box, PATIENT)
        store.ingest(scans, delivery=delivery.labelled)
        assert delivery.labelled.notes == [f"{len(patients)} named groups"]
    table = named(store)
    assert table["group"].nunique() == 32
    assert (table.groupby("group")[["split", "group_id"]].nunique() == 1).all(axis=None)
    put(tmp_path / "scans" / "ill" / "patient_0" / "more.png", 3)
    store.ingest(scans)  # without the inbox, as `dvc repro`
    assert named(store)["group"].nunique() == 32


def test_a_delivery_without_a_matching_path_is_a_warning(tmp_path, caplog):
    put(tmp_path / "ward" / "ill" / "1.png", 1)
    assert [item.group for item in delivery_in(tmp_path, PATIENT).labelled.items] == [""]
    assert "retrain.group is '(?P<group>patient_" in caplog.text and "(e.g. ward/ill/1.png)" in caplog.text
    caplog.clear()
    delivery_in(tmp_path)
    assert not caplog.messages


# The tables


def test_the_tables_of_a_dataset_without_group_names_have_no_group_column(store, tmp_path):
    store.ingest(put_patients(tmp_path / "scans", range(6)))
    for path in (store.dataset / "ledger.parquet").iterdir():
        assert pq.read_schema(path).names == [name for name in tables.SCHEMAS[tables.LEDGER].names if name != "group"]
    assert "groups" not in store.summary
    assert store.ledger["group"].isna().all()


def test_every_file_of_the_ledger_has_a_group_column_once_an_image_has_a_group_name(store, tmp_path):
    plain = put_patients(tmp_path / "plain", range(100, 104))
    store.ingest(plain)
    store.ingest(plain, source(put_patients(tmp_path / "scans", range(6)), group=PATIENT))
    files = sorted((store.dataset / "ledger.parquet").iterdir())
    assert len(files) == 2
    assert all("group" in pq.read_schema(path).names for path in files)
    assert pq.read_table(store.dataset / "ledger.parquet")["group"].null_count == 12


def test_a_second_ingest_leaves_the_summary_and_tables_of_named_groups_unchanged(store, tmp_path):
    photos = put_patients(tmp_path / "scans", range(10))
    store.ingest(source(photos, group=PATIENT))
    before = store.bytes()
    shutil.rmtree(store.scratch)
    assert not store.ingest(source(photos, group=PATIENT)).changed
    assert store.bytes() == before
    assert json.loads(before["dataset/summary.json"])["groups"]["named"] == 10
