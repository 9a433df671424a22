"""Data sets whose images have any number of classes: a column `labels` in a table, through ingest to the manifest."""

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from rootstock.dataset import label_sets, tables
from rootstock.images.inspection import Reason
from rootstock.ingest.drawing import Candidate
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.near_duplicates import NO_LINKS
from rootstock.ingest.splits import assign_splits
from rootstock.system.errors import SourceError
from tests.images import put_classes
from tests.listing import labels, manifest, problems
from tests.shapes import SHAPES, drawn_labels, put_shapes

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}

# What a table says


def test_labels_in_a_csv_are_separated_by_semicolons_and_normalised(listed, five_photos):
    rows = 'ants/00.png,red; ant\nants/01.png,"ant;ant; fire  ant;"\nbees/00.png,\nbees/01.png,007\n'
    source = listed(manifest(five_photos / "list.csv", "path,labels\n" + rows))
    assert labels(source) == {
        "ants/00.png": "ant;red", "ants/01.png": "ant;fire ant", "bees/00.png": "", "bees/01.png": "007"
    }  # fmt: skip
    assert source.layout["classes"] == ["007", "ant", "fire ant", "red"]
    assert source.notes == ["images of none of the classes, as their list of labels is empty: 1"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([["b", "a"], [], None]), {"ants/00.png": "a;b", "ants/01.png": ""}),
        (pa.array([[7, 12], [7], None]), {"ants/00.png": "12;7", "ants/01.png": "7"}),
        (pa.array([["a"], ["b", None], []], pa.large_list(pa.large_string())), {"ants/00.png": "a", "bees/00.png": ""}),
        (
            pa.array([["b", "a"], ["a", "a"], None], pa.list_(pa.string(), 2)),
            {"ants/00.png": "a;b", "ants/01.png": "a"},
        ),
        (pa.array(["b;a", "", None]), {"ants/00.png": "a;b", "ants/01.png": ""}),
    ],
    ids=["lists", "numbers", "a null in a list", "lists of two", "text"],
)
def test_labels_in_parquet_are_lists_or_text_and_null_is_no_label(listed, five_photos, column, expected):
    table = pa.table({"path": ["ants/00.png", "ants/01.png", "bees/00.png"], "labels": column})
    pq.write_table(table, five_photos / "list.parquet")
    source = listed(five_photos / "list.parquet")
    assert labels(source) == expected
    assert list(problems(source).values()) == [Reason.NO_LABEL]


def test_a_label_with_a_semicolon_in_a_list_is_an_error(listed, five_photos):
    pq.write_table(pa.table({"path": ["ants/00.png"], "labels": [["a;b"]]}), five_photos / "list.parquet")
    with pytest.raises(SourceError, match="a label in the column 'labels' has a ';', which separates labels"):
        listed(five_photos / "list.parquet")


@pytest.mark.parametrize("column", [pa.array([[["a"]]]), pa.array([[{"name": "a"}]]), pa.array([{"name": "a"}])])
def test_labels_that_are_neither_lists_of_texts_nor_text_are_an_error_that_says_what_they_are(
    listed, five_photos, column
):
    pq.write_table(pa.table({"path": ["ants/00.png"], "labels": column}), five_photos / "list.parquet")
    with pytest.raises(SourceError, match=r"the column 'labels' holds (list<|struct<).*; expected"):
        listed(five_photos / "list.parquet")


def test_a_table_with_label_and_labels_is_an_error(listed, five_photos):
    table = manifest(five_photos / "list.csv", "path,label,labels\nants/00.png,ant,ant;red\n")
    with pytest.raises(SourceError, match="has the columns 'label' and 'labels'; expected one of them"):
        listed(table)


# The dataset


def test_the_manifest_has_sets_of_labels_and_the_summary_counts_each_class(store, tmp_path):
    drawn = drawn_labels(60)
    store.ingest(put_shapes(tmp_path / "shapes", 60))
    found = store.manifest
    assert tables.is_multi_label(found)
    assert tables.classes_of(found) == list(SHAPES)
    assert dict(zip(found["path"], found["label"], strict=True)) == {
        f"{number:04d}.png": label_sets.join(labels) for number, labels in enumerate(drawn)
    }
    has = tables.labels_of_rows(found, list(SHAPES))
    summary = store.summary
    assert summary["multi_label"] is True
    for index, name in enumerate(SHAPES):
        counts = summary["by_class"][name]
        assert sum(counts.values()) == has[:, index].sum() == sum(name in labels for labels in drawn)
        assert counts == {split: int(has[(found["split"] == split).to_numpy(), index].sum()) for split in SPLITS}


def test_a_second_run_changes_nothing_and_a_corrected_row_changes_its_labels_alone(store, tmp_path):
    table = put_shapes(tmp_path / "shapes", 40)
    store.ingest(table)
    before = store.manifest
    assert not store.ingest(table).changed
    rows = pq.read_table(table).to_pydict()
    rows["labels"][3] = ["cross", "square"]
    pq.write_table(pa.table(rows), table)
    assert store.ingest(table).new == 0
    after = store.manifest
    changed = before["path"] == "0003.png"
    assert after.loc[changed, "label"].item() == "cross;square"
    assert after[~changed].equals(before[~changed])
    assert after.loc[changed, "split"].item() == before.loc[changed, "split"].item()


def test_a_single_class_is_enough_as_images_may_lack_it(store, photos):
    paths = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    store.ingest(manifest(photos / "list.csv", "path,labels\n" + "".join(
        f"{path},{'crack' if number % 2 else ''}\n" for number, path in enumerate(paths)
    )))  # fmt: skip
    assert tables.classes_of(store.manifest) == ["crack"]


def test_a_class_of_two_images_is_an_error_that_counts_them(store, tmp_path):
    table = put_shapes(tmp_path / "shapes", 30)
    rows = pq.read_table(table).to_pydict()
    for number in (0, 1):
        rows["labels"][number].append("star")
    pq.write_table(pa.table(rows), table)
    with pytest.raises(SourceError, match=r"'star' has 2\. A class needs at least 3"):
        store.ingest(table)


def test_two_spellings_of_a_class_are_an_error_that_names_both(store, photos):
    rows = "ants/00.png,ant;red\nants/01.png,Ant\nbees/00.png,red\n"
    table = manifest(photos / "list.csv", "path,labels\n" + rows)
    with pytest.raises(SourceError, match=r"'Ant' \(.*ants/01.png\) and 'ant' \(.*ants/00.png\)"):
        store.ingest(table)


def test_an_image_listed_twice_with_other_labels_is_rejected(store, tmp_path):
    table = put_shapes(tmp_path / "shapes", 30)
    (table.parent / "copy.png").write_bytes((table.parent / "0000.png").read_bytes())
    rows = pq.read_table(table).to_pydict()
    rows["path"].append("copy.png")
    rows["labels"].append([*rows["labels"][0], "cross"] if "cross" not in rows["labels"][0] else [])
    pq.write_table(pa.table(rows), table)
    store.ingest(table)
    assert store.rejected == {"0000.png": "conflicting_label", "copy.png": "conflicting_label"}


def test_sources_of_one_class_beside_a_table_of_several_are_an_error_that_names_both(store, tmp_path):
    table = put_shapes(tmp_path / "shapes", 30)
    photos = put_classes(tmp_path / "photos", {"ants": 3, "bees": 3})
    with pytest.raises(SourceError, match=r"shapes.parquet is multi-label.*photos has one class per image"):
        store.ingest(table, photos)
    store.ingest(table)
    table.rename(tmp_path / "elsewhere.parquet")  # what is known of it counts where it cannot be reached
    with pytest.raises(SourceError, match="expected the same of all sources"):
        store.ingest(table, photos)


# Splits


@given(st.lists(st.lists(st.sampled_from("abcd"), unique=True), min_size=1, max_size=150), st.integers(0, 99))
@settings(deadline=None, max_examples=100)
def test_every_class_keeps_the_shares(images, seed):
    candidates = [
        Candidate(f"{number:064x}", ("garden", *(sorted(labels) or [""]))) for number, labels in enumerate(images)
    ]
    assign_splits(candidates, NO_LINKS, NO_LINKS, SHARES, seed)
    counts = Counter((label, image.split) for image in candidates for label in image.stratum[1:])
    for label in {label for image in candidates for label in image.stratum[1:]}:
        total = sum(counts[label, split] for split in SPLITS)
        for split in SPLITS:
            assert abs(counts[label, split] - total * SHARES[split]) <= max(4, 0.1 * total)
