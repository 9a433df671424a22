"""Labels and splits from paths: class folders, split folders, and images that are in neither."""

import pytest

from rootstock.config import params
from rootstock.images.inspection import Reason
from rootstock.ingest import layout_choice
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.layout_choice import Known
from tests.layouts import arrange, images


def arranged(*paths: str):
    """Read a layout; return label and allowed splits of accepted files by path, and the notes."""
    found = arrange(*paths)
    return {item.path: (item.label, item.splits) for item in found.items if not item.problem}, found.notes


def problems(*paths: str) -> dict[str, Reason]:
    return {item.path: item.problem for item in arrange(*paths).items if item.problem}


# Classes


def test_a_subfolder_is_a_class_whose_images_may_go_to_any_split():
    taken, notes = arranged("ants/1.jpg", "bees/2.jpg")
    assert taken == {"ants/1.jpg": ("ants", SPLITS), "bees/2.jpg": ("bees", SPLITS)}
    assert notes == []


def test_items_have_domain_and_stamp_and_are_sorted_by_path():
    source = params.Source(path="photos", domain="garden")
    found = layout_choice.read_paths({"b/1.jpg": "one", "a/2.jpg": "two"}, source, Known()).files
    assert [(item.path, item.domain, item.stamp) for item in found.items] == [
        ("a/2.jpg", "garden", "two"),
        ("b/1.jpg", "garden", "one"),
    ]


def test_images_in_deeper_folders_have_the_label_of_their_class_folder():
    taken, _ = arranged("ants/2024/may/1.jpg", "ants/2.jpg", "bees/hive 1/3.jpg")
    assert {label for label, _ in taken.values()} == {"ants", "bees"}


def test_folders_common_to_all_images_are_not_classes():
    taken, _ = arranged("photos-main/data/ants/1.jpg", "photos-main/data/bees/2.jpg", "photos-main/README.md")
    assert taken["photos-main/data/ants/1.jpg"] == ("ants", SPLITS)
    taken, _ = arranged("./ants/1.jpg", "./bees/2.jpg")
    assert taken["./ants/1.jpg"] == ("ants", SPLITS)


def test_a_readme_or_licence_beside_the_common_folder_changes_nothing():
    taken, _ = arranged("photos/ants/1.jpg", "photos/bees/2.jpg", "LICENSE", "README.md")
    assert taken["photos/ants/1.jpg"] == ("ants", SPLITS)


def test_a_single_folder_is_a_class():
    assert arranged("ants/1.jpg", "ants/2.jpg")[0]["ants/1.jpg"] == ("ants", SPLITS)


def test_a_class_may_be_called_train():
    taken, notes = arranged("train/1.jpg", "train/steam/2.jpg", "bus/3.jpg", "car/4.jpg")
    assert {label for label, _ in taken.values()} == {"train", "bus", "car"}
    assert notes == []


def test_a_folder_that_contains_only_junk_is_an_empty_class():
    paths = [*images("ants", "bees"), "wasps/", "hornets/.DS_Store", "ants/2024/"]
    assert arrange(*paths).empty == ("hornets", "wasps")


# Splits


def test_train_val_and_test_folders_determine_the_split():
    taken, notes = arranged("train/ants/1.jpg", "val/ants/2.jpg", "test/ants/3.jpg", "train/bees/a/4.jpg")
    assert taken == {
        "train/ants/1.jpg": ("ants", ("train",)),
        "val/ants/2.jpg": ("ants", ("val",)),
        "test/ants/3.jpg": ("ants", ("test",)),
        "train/bees/a/4.jpg": ("bees", ("train",)),
    }
    assert notes == ["train, val and test as defined by the folders"]


@pytest.mark.parametrize(("train", "val", "test"), [("Train", "Valid", "Test"), ("training", "validation", "testing")])
def test_split_folders_may_have_other_common_spellings(train, val, test):
    taken, _ = arranged(f"set/{train}/ants/1.jpg", f"set/{val}/ants/2.jpg", f"set/{test}/ants/3.jpg")
    assert {path.split("/")[1]: splits for path, (_, splits) in taken.items()} == {
        train: ("train",),
        val: ("val",),
        test: ("test",),
    }


def test_without_a_test_folder_val_becomes_test_and_validation_is_drawn_from_train():
    taken, notes = arranged("train/ants/1.jpg", "val/ants/2.jpg")
    assert taken["train/ants/1.jpg"] == ("ants", ("train", "val"))
    assert taken["val/ants/2.jpg"] == ("ants", ("test",))
    assert notes == ["no test folder: val becomes the test split, and validation is drawn from train"]


def test_without_a_val_folder_validation_is_drawn_from_train():
    taken, notes = arranged("train/ants/1.jpg", "test/ants/2.jpg")
    assert taken["train/ants/1.jpg"] == ("ants", ("train", "val"))
    assert taken["test/ants/2.jpg"] == ("ants", ("test",))
    assert notes == ["no val folder: validation is drawn from train"]


def test_without_val_and_test_folders_both_are_drawn_from_train():
    taken, notes = arranged("train/ants/1.jpg", "train/bees/2.jpg")
    assert taken["train/bees/2.jpg"] == ("bees", SPLITS)
    assert notes == ["neither val nor test folder: both are drawn from train"]


def test_annotations_beside_split_folders_change_nothing():
    taken, _ = arranged("train/ants/1.jpg", "val/ants/2.jpg", "annotations/xml/1.xml", "labels.csv")
    assert taken["train/ants/1.jpg"] == ("ants", ("train", "val"))


# Files without a label


def test_images_outside_class_folders_in_or_beside_split_folders_have_no_label():
    paths = ("train/ants/1.jpg", "test/2.jpg", "val/ants/3.jpg", "unlabelled/4.jpg", "extra/ants/5.jpg", "6.jpg")
    assert problems(*paths) == dict.fromkeys(
        ["test/2.jpg", "unlabelled/4.jpg", "extra/ants/5.jpg", "6.jpg"], Reason.NO_LABEL
    )


def test_an_image_in_no_folder_has_no_label():
    assert problems("1.jpg", "ants/2.jpg") == {"1.jpg": Reason.NO_LABEL}


def test_files_with_other_extensions_are_not_images_and_those_without_may_be():
    paths = ("ants/1.jpg", "ants/notes.txt", "ants/clip.mp4", "ants/img_0002")
    assert problems(*paths) == dict.fromkeys(["ants/notes.txt", "ants/clip.mp4"], Reason.NOT_AN_IMAGE)


def test_a_folder_of_images_in_unsupported_formats_is_a_class_and_one_of_text_files_is_not():
    found = arrange(*images("ants", "bees"), "wasps/1.heic", "flies/1.cr2", "scripts/run.py", "lists/a.csv")
    assert {item.path: item.label for item in found.items if item.problem is Reason.NOT_AN_IMAGE} == {
        "wasps/1.heic": "wasps", "flies/1.cr2": "flies", "scripts/run.py": "", "lists/a.csv": "",
    }  # fmt: skip
    assert found.notes == ["not classes, since they contain no images: lists, scripts"]
