"""The layout of a source is the one that the user set, else the one recorded with the dataset, else detected."""

import pytest

from rootstock.config import params
from rootstock.images.inspection import Reason
from rootstock.ingest import layout_choice
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.layout_choice import Known
from rootstock.system.errors import SourceError
from tests.layouts import images, kept, labels, read, splits

# Set by the user


def test_the_user_can_set_which_folders_are_classes():
    both = images("left/a", "left/b", "right/a", "right/b")
    assert labels(*both, classes_at=".") == {"left", "right"}
    assert labels(*both, classes_at="*") == {"a", "b"}
    assert labels(*both, classes_at="left") == {"a", "b"}
    assert labels(*both, layout="class_folders") == {"left", "right"}
    assert labels(*images("train", "test"), layout="class_folders") == {"train", "test"}
    assert labels(*images("images", "masks"), layout="class_folders") == {"images", "masks"}
    cameras = images("bees/cam1", "bees/cam2", "bees/cam3")
    assert labels(*cameras, classes_at=".") == {"bees"}
    assert labels(*cameras, classes_at="bees") == {"cam1", "cam2", "cam3"}


def test_empty_fields_of_a_form_set_no_layout():
    for empty in ({"classes_at": ""}, {"splits": {}}, {"classes_at": None, "splits": None, "layout": "auto"}):
        assert params.Source(path="photos", domain="garden", **empty).layout_given() == {}


def test_the_user_can_set_which_folders_are_splits():
    paths = images("a/ants", "a/bees", "b/ants", "b/bees", "c/ants")
    given = {"splits": {"a": "train", "b": "test"}}
    assert splits(*paths, **given) == {"a": ("train", "val"), "b": ("test",)}
    assert labels(*(f"set/{path}" for path in paths), classes_at="set", **given) == {"ants", "bees"}
    assert splits(*paths, splits={"*": "train"}) == dict.fromkeys("abc", SPLITS)
    named = images("train/a", "new/a", "test/a")
    assert splits(*named, layout="split_folders") == {"train": ("train", "val"), "test": ("test",)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"classes_at": "2025"},
            r"no image is in a class folder of the layout .* \(class folders under 2025/",
        ),
        ({"splits": {"2025": "train"}}, r"no image is in a class folder .* images are in ants/, bees/"),
        ({"layout": "split_folders"}, "no folder is named like a split"),
    ],
)
def test_a_layout_that_matches_no_folder_is_an_error(given, said):
    with pytest.raises(SourceError, match=said):
        read(*images("ants", "bees"), **given)


# Recorded with the dataset


def test_a_recorded_layout_is_kept_whatever_is_added_and_removed():
    known = kept(*images("2023/ants", "2023/bees", each=40))
    found = read(*images("2023/ants", each=40), *images("2024/ants", each=3), "2023/wasps/1.jpg", known=known)
    assert {item.label for item in found.files.items if not item.problem} == {"ants", "wasps"}
    assert {item.path.split("/")[0] for item in found.files.items if item.problem is Reason.NO_LABEL} == {"2024"}
    assert found.files.notes == ["3 images are in no class folder (2024/ants/0.jpg, 2024/ants/1.jpg, 2024/ants/2.jpg)"]
    assert found.layout["classes_at"] == "2023"


@pytest.mark.parametrize(
    ("first", "second", "remedy"),
    [
        (["2023/ants", "2023/bees"], ["2024/ants", "2024/wasps"], 'classes_at: "*"'),
        (["photos/ants", "photos/bees"], ["cover"], 'classes_at: "photos", to exclude them'),
        (["photos/ants", "photos/bees"], ["a/b/ants"], 'classes_at: "*", to include them'),
        (["cam1/ants", "cam2/bees"], ["wasps"], 'classes_at: "*", to exclude them'),
        (
            ["x/train/a", "x/test/a"],
            ["x/x/train/a", "x/x/test/a"],
            "splits: {x/test: test, x/train: train}, to exclude",
        ),
        (["set/photos/ants", "set/photos/bees"], ["set/extra/ants"], 'classes_at: "set/*"'),
        (["train/ants", "train/bees"], ["new/ants", "new/bees"], "splits: {train: train, new: train}"),
        (["train/ants", "test/ants"], ["dev/ants"], "splits: {test: test, train: train, dev: val}, to include them"),
        (["images/ants", "images/bees"], ["masks/ants"], 'classes_at: "images", to exclude them'),
        (["train/ants", "train/bees", "test/ants"], ["more/ants"], "splits: {test: test, train: train, more: train}"),
        (["ants", "bees"], ["."], 'classes_at: ".", to exclude them'),
        (["photos/ants", "photos/bees"], ["photos"], 'classes_at: "photos", to exclude them'),
        (["train/ants", "test/ants"], ["."], "splits: {test: test, train: train}, to exclude them"),
        (["train/ants", "test/ants"], ["train"], "splits: {test: test, train: train}, to exclude them"),
    ],
)
def test_many_images_outside_the_recorded_layout_are_an_error_that_names_the_parameter_to_set(first, second, remedy):
    known = kept(*images(*first))
    with pytest.raises(SourceError, match=r"\d+ of \d+ images are outside its") as error:
        read(*images(*first, *second, each=6), known=known)
    assert f"set ingest.sources[].layout, classes_at or splits: {remedy}" in str(error.value)


def test_a_split_without_classes_is_no_error_however_large():
    paths = images("train/ants", "train/bees")
    known = kept(*paths, *images("test"))
    found = read(*paths, *images("test", each=60), known=known)
    assert found.files.notes[1].startswith("60 images are in no class folder (test/0.jpg, ")


@pytest.mark.parametrize("second", ["test", "masks", "Validation", "old/ants", "train", "2024", "cam 3", "unlabelled"])
def test_a_later_folder_that_is_probably_not_a_class_is_an_error(second):
    known = kept(*images("ants", "bees"))
    with pytest.raises(SourceError, match=r"a class|classes beside it"):
        read(*images("ants", "bees", second), known=known)
    assert labels(*images("ants", "bees", second), known=known, classes_at=".") > {"ants", "bees"}


def test_a_class_that_was_accepted_once_stays_accepted():
    paths = images("images", "masks")
    layout = read(*paths, layout="class_folders").layout
    assert layout["given"] == {"layout": "class_folders"}
    train = images("train", "bus", "car")
    assert labels(*train, known=kept(*train)) == {"train", "bus", "car"}


def test_removing_a_layout_parameter_detects_the_layout_again():
    paths = images("left/a", "left/b")
    known = kept(*paths, classes_at=".", layout="class_folders")
    assert read(*paths, known=known).layout["classes_at"] == "left"


def test_the_layout_is_detected_again_if_all_images_have_moved():
    known = kept(*images("2023/ants", "2023/bees"))
    assert read(*images("photos/ants", "photos/bees"), known=known).layout["classes_at"] == "photos"


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (images("bees/cam1", "bees/cam2"), {"cam1", "cam2"}),
        (images("cam1", "cam2"), {"cam1", "cam2"}),
        (images("train/a", "dev/a"), {"train", "dev"}),
        (images("2023/ants", "2023/bees"), {"ants", "bees"}),
        (images("train/ants", "val/ants"), {"ants"}),
    ],
)
def test_the_layout_of_a_dataset_that_recorded_none_is_inferred_from_its_labels(paths, expected):
    depth = 1 if expected & {path.split("/")[1] for path in paths} else 0
    known = Known(labels=lambda: {path: path.split("/")[depth] for path in paths})
    assert {item.label for item in read(*paths, known=known).files.items} == expected
    if paths[0].startswith("2023"):
        more = [*paths, *images("2024/ants", "2024/bees")]
        assert {item.label for item in read(*more, known=known).files.items} == expected


def test_a_layout_is_described_in_one_line():
    layout = read(*images("2023/ants", "2023/bees")).layout
    assert layout_choice.describe(layout, "field") == "field: class folders under 2023/; 2 classes: ants, bees"
    layout = read(*images("train/ants", "test/ants")).layout
    assert layout_choice.describe(layout, "f") == "f: split folders (test/ is test, train/ is train); 1 class: ants"
