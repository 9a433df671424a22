"""Labels that a person gave to images of the inbox: read from tables and Label Studio, and each image moved."""

import json

import fsspec
import pytest

from rootstock.ingest import inbox, labelled
from rootstock.system.errors import SourceError
from tests.small_dataset import CLASSES, picture

A, B = "night/_unlabelled/a.png", "night/_unlabelled/deep/b.png"


@pytest.fixture
def url(tmp_path):
    for number, path in enumerate((A, B, "day/_unlabelled/c.png")):
        place = tmp_path / "inbox" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(CLASSES[0], number).save(place)
    return str(tmp_path / "inbox")


def written(tmp_path, name: str, content: object) -> dict[str, str]:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return labelled.read_labels(path)


def annotated(path: str, *labels: str) -> dict:
    done = [
        {"result": [{"type": "choices", "value": {"choices": [label]}}], "was_cancelled": False} for label in labels
    ]
    return {"id": 1, "data": {"image": "data:,", "path": path}, "annotations": done}


def test_a_table_in_which_some_labels_are_filled_in_is_read(tmp_path):
    table = f"path,domain,predicted,label\n{A},night,rings, stripes \n{B},night,rings,\n"
    assert written(tmp_path, "to_label.csv", table) == {A: "stripes"}
    assert written(tmp_path, "signs.csv", "path,label\n'=a/_unlabelled/x.png,'-1\n") == {"=a/_unlabelled/x.png": "-1"}


def test_every_export_of_label_studio_is_read(tmp_path):
    skipped = {**annotated(B), "annotations": [{"result": [], "was_cancelled": True}]}
    assert written(tmp_path, "a.json", [annotated(A, "rings", "checks"), skipped]) == {A: "checks"}
    assert written(tmp_path, "b.json", [{"path": A, "label": "rings", "id": 1}, {"path": B}]) == {A: "rings"}
    assert written(tmp_path, "c.csv", f"image,path,label,annotator\n,{A},rings,1\n") == {A: "rings"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "path,predicted\nx,y\n", "a.csv cannot be read (it is something else); expected to_label.csv"),
        ("a.json", "[1, 2]", "a.json cannot be read (it is something else)"),
        ("a.json", "{not json", "a.json cannot be read (it is something else)"),
        ("a.csv", f"path,label\n{A},rings\n{A},checks\n", "a.png has two labels, rings and checks; expected one."),
    ],
)
def test_what_is_no_list_of_labels_is_refused_in_a_sentence(tmp_path, name, content, said):
    with pytest.raises(SourceError) as raised:
        written(tmp_path, name, content)
    assert said in str(raised.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"none.csv does not exist; expected to_label.csv"):
        labelled.read_labels(tmp_path / "none.csv")


def test_labelled_images_move_to_their_classes_and_the_others_stay(url, tmp_path):
    before = inbox.list_delivery(url, 0)
    assert labelled.move({A: "rings", B: "stripes", "night/_unlabelled/gone.png": "rings"}, before) == 2
    after = inbox.list_delivery(url, 0)
    assert [(item.path, item.label) for item in after.labelled.items] == [
        ("night/rings/a.png", "rings"),
        ("night/stripes/deep/b.png", "stripes"),
    ]
    assert [item.path for item in after.unlabelled.items] == ["day/_unlabelled/c.png"]


def test_an_image_of_that_name_in_the_class_is_not_overwritten(url, tmp_path):
    there = tmp_path / "inbox" / "night" / "rings" / "a.png"
    there.parent.mkdir()
    there.write_bytes(b"another")
    labelled.move({A: "rings"}, inbox.list_delivery(url, 0))
    assert there.read_bytes() == b"another"
    assert len(list(there.parent.iterdir())) == 2


def test_images_on_a_store_move_there(url):
    fsspec.filesystem("memory").put(url, "/labelled-inbox", recursive=True)
    try:
        labelled.move({A: "rings"}, inbox.list_delivery("memory://labelled-inbox", 0))
        paths = [item.path for item in inbox.list_delivery("memory://labelled-inbox", 0).labelled.items]
        assert paths == ["night/rings/a.png"]
    finally:
        fsspec.filesystem("memory").rm("/labelled-inbox", recursive=True)


@pytest.mark.parametrize("label", ["../../etc", "a/b", "_rejected", "..", "a\\b"])
def test_a_label_that_is_no_name_of_a_class_is_refused(url, label):
    with pytest.raises(SourceError, match="cannot be a class; expected a name without slashes"):
        labelled.check({A: label}, inbox.list_delivery(url, 0), CLASSES, new_classes=True)


def test_a_class_that_the_champion_does_not_know_has_to_be_allowed(url):
    delivery = inbox.list_delivery(url, 0)
    with pytest.raises(SourceError, match=r"not know ring \(did you mean rings\?\), xyz; correct the labels, or add"):
        labelled.check({A: "ring", B: "xyz"}, delivery, CLASSES, new_classes=False)
    labelled.check({A: "ring"}, delivery, CLASSES, new_classes=True)


def test_labels_of_images_that_are_no_longer_there_are_an_error(url):
    with pytest.raises(SourceError, match=r"None of the 1 labelled images is in .*gone\.png: were they moved"):
        labelled.check({"night/_unlabelled/gone.png": "rings"}, inbox.list_delivery(url, 0), CLASSES, new_classes=False)


# Any number of classes


def test_of_any_number_of_classes_a_label_is_a_set_and_a_semicolon_means_none(tmp_path):
    table = f"path,label\n{A},stripes; rings;stripes\n{B},;\nday/_unlabelled/c.png,\n"
    (tmp_path / "to_label.csv").write_text(table)
    assert labelled.read_labels(tmp_path / "to_label.csv", multi_label=True) == {A: "rings;stripes", B: ";"}
    several = {"result": [{"type": "choices", "value": {"choices": ["stripes", "rings"]}}], "was_cancelled": False}
    none = {"result": [], "was_cancelled": False}
    tasks = [{"data": {"path": A}, "annotations": [several]}, {"data": {"path": B}, "annotations": [none]}]
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    (tmp_path / "b.json").write_text(json.dumps([{"path": A, "label": {"choices": ["stripes", "rings"]}}, {"path": B}]))
    assert labelled.read_labels(tmp_path / "a.json", multi_label=True) == {A: "rings;stripes", B: ";"}
    assert labelled.read_labels(tmp_path / "b.json", multi_label=True) == {A: "rings;stripes"}
    assert labelled.read_labels(tmp_path / "a.json") == {A: "stripes;rings"}  # one class per image: check refuses it


def test_sets_of_known_classes_are_accepted_and_their_folders_are_read_as_sets(url):
    delivery = inbox.list_delivery(url, 0)
    labels = {A: "rings;stripes", B: ";"}
    labelled.check(labels, delivery, CLASSES, new_classes=False, multi_label=True)
    with pytest.raises(SourceError, match=r"does not know waves \(did you mean"):
        labelled.check({A: "rings;waves"}, delivery, [*CLASSES, "wave"], new_classes=False, multi_label=True)
    assert labelled.move(labels, delivery) == 2
    items = inbox.with_label_sets(inbox.list_delivery(url, 0).labelled.items)
    assert {item.path: (item.label, item.problem) for item in items} == {
        "night/rings;stripes/a.png": ("rings;stripes", None), "night/;/deep/b.png": ("", None)
    }  # fmt: skip
