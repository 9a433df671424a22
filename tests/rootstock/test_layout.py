"""What paths say: class folders, split folders, litter, names that point outside."""

import pytest

from rootstock.intake import Reason
from rootstock.layout import SPLITS, arrange, is_litter, is_unsafe, printable


def arranged(*paths: str):
    """Read a layout; returns label and allowed splits by path for what may be taken in, and the notes."""
    items, notes = arrange(dict.fromkeys(paths, "stamp"), "garden")
    return {item.path: (item.label, item.splits) for item in items if not item.problem}, notes


def problems(*paths: str) -> dict[str, Reason]:
    return {item.path: item.problem for item in arrange(dict.fromkeys(paths, "s"), "garden")[0] if item.problem}


def test_a_sub_folder_is_a_class_and_may_go_to_any_split():
    taken, notes = arranged("ants/1.jpg", "bees/2.jpg")
    assert taken == {"ants/1.jpg": ("ants", SPLITS), "bees/2.jpg": ("bees", SPLITS)}
    assert notes == []


def test_items_carry_domain_and_stamp_and_are_sorted_by_path():
    items, _ = arrange({"b/1.jpg": "one", "a/2.jpg": "two"}, "garden")
    assert [(item.path, item.domain, item.stamp) for item in items] == [
        ("a/2.jpg", "garden", "two"),
        ("b/1.jpg", "garden", "one"),
    ]


def test_deeper_folders_belong_to_their_class():
    taken, _ = arranged("ants/2024/may/1.jpg", "ants/2.jpg", "bees/hive 1/3.jpg")
    assert {label for label, _ in taken.values()} == {"ants", "bees"}


def test_folders_that_all_images_share_say_nothing():
    taken, _ = arranged("photos-main/data/ants/1.jpg", "photos-main/data/bees/2.jpg", "photos-main/README.md")
    assert taken["photos-main/data/ants/1.jpg"] == ("ants", SPLITS)
    taken, _ = arranged("./ants/1.jpg", "./bees/2.jpg")
    assert taken["./ants/1.jpg"] == ("ants", SPLITS)


def test_a_readme_or_a_licence_beside_the_shared_folder_changes_nothing():
    taken, _ = arranged("photos/ants/1.jpg", "photos/bees/2.jpg", "LICENSE", "README.md")
    assert taken["photos/ants/1.jpg"] == ("ants", SPLITS)


def test_a_single_class_folder_keeps_its_name():
    assert arranged("ants/1.jpg", "ants/2.jpg")[0]["ants/1.jpg"] == ("ants", SPLITS)


def test_train_val_and_test_folders_give_the_split():
    taken, notes = arranged("train/ants/1.jpg", "val/ants/2.jpg", "test/ants/3.jpg", "train/bees/a/4.jpg")
    assert taken == {
        "train/ants/1.jpg": ("ants", ("train",)),
        "val/ants/2.jpg": ("ants", ("val",)),
        "test/ants/3.jpg": ("ants", ("test",)),
        "train/bees/a/4.jpg": ("bees", ("train",)),
    }
    assert notes == ["train, val and test as the folders say"]


@pytest.mark.parametrize(("train", "val", "test"), [("Train", "Valid", "Test"), ("training", "validation", "testing")])
def test_split_folders_may_be_spelled_in_other_ways(train, val, test):
    taken, _ = arranged(f"set/{train}/ants/1.jpg", f"set/{val}/ants/2.jpg", f"set/{test}/ants/3.jpg")
    assert {path.split("/")[1]: splits for path, (_, splits) in taken.items()} == {
        train: ("train",),
        val: ("val",),
        test: ("test",),
    }


def test_without_a_test_folder_val_is_the_test_split_and_validation_is_cut_from_train():
    taken, notes = arranged("train/ants/1.jpg", "val/ants/2.jpg")
    assert taken["train/ants/1.jpg"] == ("ants", ("train", "val"))
    assert taken["val/ants/2.jpg"] == ("ants", ("test",))
    assert notes == ["no test folder: val is the test split, and validation is cut from train"]


def test_without_a_val_folder_validation_is_cut_from_train():
    taken, notes = arranged("train/ants/1.jpg", "test/ants/2.jpg")
    assert taken["train/ants/1.jpg"] == ("ants", ("train", "val"))
    assert taken["test/ants/2.jpg"] == ("ants", ("test",))
    assert notes == ["no val folder: validation is cut from train"]


def test_a_train_folder_alone_is_cut_into_all_three():
    taken, notes = arranged("train/ants/1.jpg", "train/bees/2.jpg")
    assert taken["train/bees/2.jpg"] == ("bees", SPLITS)
    assert notes == ["neither val nor test folder: both are cut from train"]


def test_a_class_may_be_called_train():
    taken, notes = arranged("train/1.jpg", "train/steam/2.jpg", "bus/3.jpg", "car/4.jpg")
    assert {label for label, _ in taken.values()} == {"train", "bus", "car"}
    assert notes == []


def test_annotations_beside_the_split_folders_change_nothing():
    taken, _ = arranged("train/ants/1.jpg", "val/ants/2.jpg", "annotations/xml/1.xml", "labels.csv")
    assert taken["train/ants/1.jpg"] == ("ants", ("train", "val"))


def test_images_without_a_class_beside_or_in_split_folders_have_no_label():
    paths = ("train/ants/1.jpg", "test/2.jpg", "val/ants/3.jpg", "unlabelled/4.jpg", "extra/ants/5.jpg", "6.jpg")
    assert problems(*paths) == dict.fromkeys(
        ["test/2.jpg", "unlabelled/4.jpg", "extra/ants/5.jpg", "6.jpg"], Reason.NO_LABEL
    )


def test_an_image_in_no_folder_has_no_label():
    assert problems("1.jpg", "ants/2.jpg") == {"1.jpg": Reason.NO_LABEL}


def test_other_files_are_not_images_and_a_name_without_extension_may_be_one():
    paths = ("ants/1.jpg", "ants/notes.txt", "ants/clip.mp4", "ants/img_0002")
    assert problems(*paths) == dict.fromkeys(["ants/notes.txt", "ants/clip.mp4"], Reason.NOT_AN_IMAGE)


@pytest.mark.parametrize(
    "path",
    [".DS_Store", "ants/.DS_Store", "ants/._1.jpg", "__MACOSX/ants/1.jpg", "ants/Thumbs.db", ".git/x", "a/desktop.ini"],
)
def test_litter_is_ignored(path):
    assert is_litter(path)
    assert path not in {item.path for item in arrange({path: "", "ants/1.jpg": ""}, "garden")[0]}


@pytest.mark.parametrize("path", ["ants/1.jpg", "./ants/1.jpg", "ants/a.b.jpg", "a/../../1.jpg"])
def test_what_a_person_put_there_is_no_litter(path):
    assert not is_litter(path)


@pytest.mark.parametrize(
    "path", ["/etc/1.jpg", "../1.jpg", "ants/../../1.jpg", "C:/1.jpg", "C:\\1.jpg", "\\\\host\\1.jpg", "a\\..\\1.jpg"]
)
def test_names_that_point_outside_are_unsafe(path):
    assert is_unsafe(path)


@pytest.mark.parametrize("path", ["ants/1.jpg", "./ants/1.jpg", "ants..2/1..jpg", "a:b/1.jpg"])
def test_other_names_are_safe(path):
    assert not is_unsafe(path)


def test_names_that_are_not_utf_8_become_text_that_any_file_can_hold():
    assert printable("käfer/1.jpg") == "käfer/1.jpg"
    assert printable(b"k\xe4fer/1.jpg".decode("utf-8", "surrogateescape")) == r"k\xe4fer/1.jpg"
