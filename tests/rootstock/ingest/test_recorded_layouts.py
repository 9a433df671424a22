"""The layouts and labels that a dataset records are kept by later ingests, and change only where the user means it."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from rootstock.config import params
from rootstock.ingest.ingest import IngestResult
from rootstock.system.errors import SourceError
from tests.images import put, put_classes

# Layouts


def test_the_detected_layout_is_logged_and_recorded_in_the_dataset_and_kept_in_another_clone(store, tmp_path, caplog):
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


def test_a_dataset_without_a_recorded_layout_keeps_its_labels_and_records_one(store, tmp_path):
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


def test_a_layout_set_by_the_user_may_change_labels(store, tmp_path):
    photos = tmp_path / "photos"
    for number, place in enumerate(("left/a", "left/b", "right/a", "right/b")):
        put_classes(photos / place, {"": 5}, first=10 * number)
    with pytest.raises(SourceError, match="contain the same folders"):
        store.ingest(photos)
    for at, classes in ((".", ["left", "right"]), ("*", ["a", "b"])):
        store.ingest(params.Source(path=str(photos), domain="garden", classes_at=at))
        assert store.summary["classes"] == classes


# Labels


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_renamed_class_or_many_changed_labels_are_an_error_unless_relabelling_is_allowed(store, tmp_path, kind):
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


def test_a_label_that_changes_only_in_case_or_spaces_is_updated_without_asking(store, photos):
    store.ingest(photos)
    (photos / "ants").rename(photos / "Ants ")
    assert store.ingest(photos).images == 15
    assert set(store.manifest["label"]) == {"Ants", "bees", "wasps"}


def test_a_table_may_correct_some_labels_without_asking_but_not_most(store, photos):
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


@pytest.mark.parametrize("other", ["Ants", "ants ", "a\u00adnts"])
def test_labels_of_two_sources_that_look_the_same_are_an_error(store, tmp_path, photos, other):
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
