"""Labels and splits from paths: class folders, split folders, junk files, unsafe names, and ambiguous layouts."""

import re

import pytest
from ruamel.yaml import YAML

from rootstock.config import params
from rootstock.images.inspection import Reason
from rootstock.ingest import layout_choice
from rootstock.ingest.file_names import is_unsafe, storable
from rootstock.ingest.junk import is_junk
from rootstock.ingest.layout import SPLITS, LabelledFiles
from rootstock.ingest.layout_choice import Known
from rootstock.system.errors import SourceError


def read(*paths: str, known: Known | None = None, **given) -> layout_choice.LabelledSource:
    source = params.Source(path="photos", domain="garden", **given)
    return layout_choice.read_paths(dict.fromkeys(paths, "stamp"), source, known or Known())


def arrange(*paths: str, **given) -> LabelledFiles:
    return read(*paths, **given).files


def arranged(*paths: str):
    """Read a layout; return label and allowed splits of accepted files by path, and the notes."""
    found = arrange(*paths)
    return {item.path: (item.label, item.splits) for item in found.items if not item.problem}, found.notes


def problems(*paths: str) -> dict[str, Reason]:
    return {item.path: item.problem for item in arrange(*paths).items if item.problem}


def images(*folders: str, each: int = 4) -> list[str]:
    """Return paths of some images in each folder."""
    return [f"{folder}/{number}.jpg" for folder in folders for number in range(each)]


def labels(*paths: str, **given) -> set[str]:
    return {item.label for item in arrange(*paths, **given).items if not item.problem}


def splits(*paths: str, **given) -> dict[str, tuple[str, ...]]:
    """Return the allowed splits of the images in each top-level folder."""
    return {item.path.split("/")[0]: item.splits for item in arrange(*paths, **given).items if not item.problem}


def test_a_sub_folder_is_a_class_and_may_go_to_any_split():
    taken, notes = arranged("ants/1.jpg", "bees/2.jpg")
    assert taken == {"ants/1.jpg": ("ants", SPLITS), "bees/2.jpg": ("bees", SPLITS)}
    assert notes == []


def test_items_carry_domain_and_stamp_and_are_sorted_by_path():
    source = params.Source(path="photos", domain="garden")
    found = layout_choice.read_paths({"b/1.jpg": "one", "a/2.jpg": "two"}, source, Known()).files
    assert [(item.path, item.domain, item.stamp) for item in found.items] == [
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
    assert notes == ["train, val and test as defined by the folders"]


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
    assert notes == ["no test folder: val becomes the test split, and validation is drawn from train"]


def test_without_a_val_folder_validation_is_cut_from_train():
    taken, notes = arranged("train/ants/1.jpg", "test/ants/2.jpg")
    assert taken["train/ants/1.jpg"] == ("ants", ("train", "val"))
    assert taken["test/ants/2.jpg"] == ("ants", ("test",))
    assert notes == ["no val folder: validation is drawn from train"]


def test_a_train_folder_alone_is_cut_into_all_three():
    taken, notes = arranged("train/ants/1.jpg", "train/bees/2.jpg")
    assert taken["train/bees/2.jpg"] == ("bees", SPLITS)
    assert notes == ["neither val nor test folder: both are drawn from train"]


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
def test_junk_files_are_ignored(path):
    assert is_junk(path)
    assert path not in {item.path for item in arrange(path, "ants/1.jpg").items}


@pytest.mark.parametrize("path", ["ants/1.jpg", "./ants/1.jpg", "ants/a.b.jpg", "a/../../1.jpg"])
def test_what_a_person_put_there_is_not_junk(path):
    assert not is_junk(path)


@pytest.mark.parametrize(
    "path", ["/etc/1.jpg", "../1.jpg", "ants/../../1.jpg", "C:/1.jpg", "C:\\1.jpg", "\\\\host\\1.jpg", "a\\..\\1.jpg"]
)
def test_names_that_point_outside_are_unsafe(path):
    assert is_unsafe(path)


@pytest.mark.parametrize("path", ["ants/1.jpg", "./ants/1.jpg", "ants..2/1..jpg", "a:b/1.jpg"])
def test_other_names_are_safe(path):
    assert not is_unsafe(path)


def test_names_that_are_not_utf_8_become_text_that_any_file_can_hold():
    assert storable("käfer/1.jpg") == "käfer/1.jpg"
    assert storable(b"k\xe4fer/1.jpg".decode("utf-8", "surrogateescape")) == r"k\xe4fer/1.jpg"


# Splits by other names


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["training_set", "test_set"], {"train", "test"}),
        (["Train", "Dev"], {"train", "val"}),
        (["train", "holdout"], {"train", "test"}),
        (["train", "hold-out"], {"train", "test"}),
        (["train2017", "val2017"], {"train", "val"}),
        (["TrainImages", "TestImages"], {"train", "test"}),
        (["trainset", "valset", "testset"], {"train", "val", "test"}),
        (["train_256x256", "eval_256x256"], {"train", "val"}),
        (["01-training", "02-validation", "03-testing"], {"train", "val", "test"}),
        (["\uff34\uff32\uff21\uff29\uff2e", "test"], {"train", "test"}),
    ],
)
def test_splits_by_other_names_are_splits(folders, expected):
    paths = images(*(f"set/{folder}/{label}" for folder in folders for label in ("ants", "bees")))
    assert labels(*paths) == {"ants", "bees"}
    assert set(read(*paths).layout["splits"].values()) == expected
    assert set(read(*paths).layout["splits"]) == {f"set/{folder}" for folder in folders}


def test_of_two_validation_folders_the_one_called_eval_is_tested_on():
    paths = images(*(f"{split}/{label}" for split in ("train", "dev", "eval") for label in ("ants", "bees")))
    assert splits(*paths) == {"train": ("train",), "dev": ("val",), "eval": ("test",)}


@pytest.mark.parametrize("inner", [("seg_train", "seg_test"), ("images", "images"), ("train", "test")])
def test_a_folder_between_a_split_and_its_classes_is_looked_through(inner):
    outer = ("seg_train", "seg_test")
    paths = images(*(f"{o}/{i}/{label}" for o, i in zip(outer, inner, strict=True) for label in ("sea", "street")))
    assert labels(*paths, *images("seg_pred/seg_pred", each=20)) == {"sea", "street"}


STOPS = {
    "splits without classes": (images("train", "test"), "test/, train/ are named like splits, but without folders ins"),
    "one split without classes": (images("training_images"), "is named like splits, but without folders inside"),
    "nothing to train on": (images("val/a", "val/b", "test/a", "test/b"), "like test, val, and there is nothing to tr"),
    "a split beside classes": (images("ants", "bees", "test"), "test/ is named like a split, but ants/, bees/ beside "),
    "a vehicle beside one other": (images("train", "bus"), "train/ is named like a split, but bus/ beside it is not"),
    "valid and invalid things": (images("valid", "invalid"), "valid/ is named like a split, but invalid/ beside it is"),
    "classes beside a split of them": (images("a", "b", "test/a", "test/b"), "a/, b/ beside it are not"),
    "a split beside its like": (images("train/a", "train/b", "new/a", "new/b"), "train/ is named like a split, but ne"),
    "splits of two sets": (images("intel_train/a", "intel_test/a"), "the folder names intel_test/, intel_train/ menti"),
    "people called Test and Train": (images("Anna Test", "Bob Train"), "Anna Test/, Bob Train/ mention splits"),
    "splits below classes": (images("a/train", "a/test", "b/train", "b/test"), "each contain test/, train/, named lik"),
    "a split among classes of splits": (images("train/a", "train/dev", "test/a", "test/b"), "dev/, named like a split"),
    "splits of images alone": (images("train/images", "test/images"), "test/, train/ are named like splits, but witho"),
    "pictures and their copies": (images("color/a", "color/b", "grey/a", "grey/b"), "color/, grey/ contain the same"),
    "images and masks": (images("images", "masks"), "masks/, named like masks or annotations, would be a class beside"),
    "images in classes and masks": (images("x/images/a", "x/images/b", "x/masks/a", each=20), "masks/, named like mas"),
    "images and labels, of splits": (images("train/images", "train/labels", "val/images", "val/labels"), "labels/, "),
    "Pascal VOC": (images("VOC/JPEGImages", "VOC/SegmentationClass"), "SegmentationClass/, named like masks"),
    "an image and its mask": (images("image", "mask"), "mask/, named like masks or annotations, would be a class"),
    "annotations beside classes": (images("ants", "bees", "Annotations"), "would be a class beside ants/, bees/"),
    "the same folders in each": (images("left/a", "left/b", "right/a", "right/b"), "left/, right/ contain the same"),
    "the same in each split": (images("train/l/a", "train/l/b", "train/r/a", "train/r/b", "test/l/a"), "l/, r/ contai"),
    "domains with images": (images("dslr/images/a", "dslr/images/b", "web/images/a", "web/images/b"), "contain the sa"),
    "cameras of one class": (images("bees/cam1", "bees/cam2"), "all images are in bees/, in the folders cam1/, cam2/"),
    "years of one class": (images("photos/2023", "photos/2024"), "in the folders 2023/, 2024/, which are probably not"),
    "cameras": (images("cam1", "cam2"), "all images are in the folders cam1/, cam2/, which are probably not classes"),
    "parts of a set": (images("HAM_images_part_1", "HAM_images_part_2"), "HAM_images_part_2/, which are probably not"),
    "lots of images": (images("images_001", "images_002"), "images_001/, images_002/, which are probably not classes"),
    "classes in a class": (images("ants", "bees", "misc/ants", "misc/bees"), "misc/ contains ants/, bees/, which are"),
    "a set in itself": (images("yes", "no", "tumours/yes", "tumours/no"), "tumours/ contains no/, yes/, which are"),
    "masks of a split": (images("ants", "bees", "train_masks"), "train_masks/, named like masks or annotations, would"),
    "masks of a class": (images("ant", "bee", "ant_mask"), "ant_mask/, named like masks or annotations, would be a cl"),
    "masks of classes": (images("ants", "bees", "ant masks"), "ant masks/, named like masks or annotations, would be"),
    "thumbnails beside classes": (images("ants", "bees", "thumbnails"), "thumbnails/, named like masks or annotations"),
    "unlabelled images beside classes": (images("ants", "bees", "unlabelled"), "unlabelled/, named like unlabelled im"),
    "a year beside classes": (images("ants", "bees", "2024/ants", "2024/wasps", "2024/flies"), "2024/, named like a y"),
    "years and others": (images("2023/a", "2023/b", "2024/a", "old/b"), "2023/, 2024/, old/ contain the same folders"),
    "years and others, in each another": (images("2023/a", "2024/b", "old/c"), "old/ contain folders (a/, b/, c/)"),
    "two sets in one folder": (images("x/train/a", "x/val/a", "signs/0", "signs/1"), "x/ contains train/, val/, named"),
    "half a set within a class": (images("ants", "bees", "x/ants", "x/wasps"), "x/ contains ants/, which is also a cl"),
    "odd names": (images("2023: a, b/x", "2023: a, b/y", "*/x", "*/y"), "contain the same folders (x/, y/)"),
}  # fmt: skip


@pytest.mark.parametrize("name", STOPS)
def test_what_could_be_read_in_two_ways_stops_says_what_is_seen_and_how_to_decide(name):
    paths, seen = STOPS[name]
    with pytest.raises(SourceError) as error:
        read(*paths)
    assert str(error.value).startswith("ingest.sources: photos: ")
    assert seen in str(error.value)
    assert "ingest.sources[].layout, classes_at or splits: " in str(error.value)


LATER = {
    "another year": (["2023/ants", "2023/bees"], ["2024/ants", "2024/wasps"]),
    "a cover": (["photos/ants", "photos/bees"], ["cover"]),
    "a split of another name": (["train/ants", "train/bees"], ["new/ants", "new/bees"]),
    "masks": (["train/good", "test/good", "test/scratched"], ["ground_truth/scratched"]),
    "a copy of all": (["x/train/a", "x/test/a"], ["x/x/train/a", "x/x/test/a"]),
    "a class beside cameras": (["cam1/ants", "cam1/bees", "cam2/ants"], ["wasps"]),
    "a set with splits beside classes": (["ants", "bees"], ["set/train/ants", "set/test/ants"]),
    "masks beside classes": (["ants", "bees"], ["masks"]),
    "masks of images in classes": (["images/ants", "images/bees"], ["masks/ants"]),
    "a camera beside classes": (["ants", "bees"], ["cam1"]),
    "a year with classes": (["ants", "bees"], ["2024/ants", "2024/wasps"]),
    "a vehicle, perhaps": (["ants", "bees"], ["train"]),
    "splits of the same classes": (["ants", "bees"], ["train/ants", "train/bees", "test/ants"]),
    "a further split": (["train/ants", "test/ants"], ["validation/ants"]),
}


@pytest.mark.parametrize("name", [*STOPS, *LATER])
def test_every_remedy_that_a_stop_names_works_when_it_is_followed_to_the_letter(name):
    first, later = LATER.get(name, ([], []))
    paths = images(*first, *later, each=20) if first else STOPS[name][0]
    known = kept(*images(*first)) if first else Known()
    with pytest.raises(SourceError) as error:
        read(*paths, known=known)
    remedies = re.findall(r'classes_at: "[^"]*"|layout: \w+|splits: {.*?: \w+}', str(error.value))
    assert remedies
    for remedy in remedies:
        found = read(*paths, known=known, **YAML(typ="safe").load(f"{{{remedy}}}")).files
        taken = [item for item in found.items if not item.problem]
        assert any("train" in item.splits for item in taken), remedy


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (images("cam1/ants", "cam1/bees", "cam2/ants", "cam2/wasps"), {"ants", "bees", "wasps"}),
        (images("2023/ants", "2024/bees"), {"ants", "bees"}),
        (images("site a/2023/ants", "site b/2023/bees", "site b/2024/ants"), {"ants", "bees"}),
        (images("ants/cam1", "ants/cam2", "bees/cam1", "bees/cam2"), {"ants", "bees"}),
        (images("train/cam1/ants", "train/cam2/bees", "test/cam1/ants", "test/cam2/bees"), {"ants", "bees"}),
        (images("spring", "summer"), {"spring", "summer"}),
        (images("ants/images", "bees/images"), {"ants", "bees"}),
        (images("train/n01/images", "train/n02/images", "val/images", "test/images"), {"n01", "n02"}),
        (
            [*images("Images/n01-ant", "Images/n02-bee"), *(f"Annotation/n01-ant/{n}" for n in range(40))],
            {"n01-ant", "n02-bee"},
        ),
        (images("0", "1", "2"), {"0", "1", "2"}),
        (images("frames", "parts", "party", "disco", "camp"), {"frames", "parts", "party", "disco", "camp"}),
        (images("CamA/ants", "CamB/bees"), {"ants", "bees"}),
        (images("1001", "1984", "2500"), {"1001", "1984", "2500"}),
        (images("with_mask", "without_mask"), {"with_mask", "without_mask"}),
        (images("masks", "no masks"), {"masks", "no masks"}),
        (images("0", "1", "mask"), {"0", "1", "mask"}),
        (images("gas masks", "helmets"), {"gas masks", "helmets"}),
        (images("wine labels", "bottles", "corks"), {"wine labels", "bottles", "corks"}),
        (images("face mask", "face shield"), {"face mask", "face shield"}),
        (images("unlabelled bottle", "labelled bottle"), {"unlabelled bottle", "labelled bottle"}),
        (images("with labels", "without labels"), {"with labels", "without labels"}),
        (images("train", "train/steam", "bus", "car"), {"train", "bus", "car"}),
        (images("data_part_1/ants", "data_part_2/bees"), {"ants", "bees"}),
        (images("set 1/ok", "set 1/not ok", "set 2/ok"), {"ok", "not ok"}),
        (images("\U0001f431", "\U0001f436"), {"\U0001f431", "\U0001f436"}),
        (images("Hund", "Katze", "dog", "cat"), {"Hund", "Katze", "dog", "cat"}),
        (images("negative test", "positive test"), {"negative test", "positive test"}),
        (images("train_station", "test_tube", "labelled bottle"), {"train_station", "test_tube", "labelled bottle"}),
        ([*images("photos/ants", "photos/bees", each=20), "photos/cover.jpg", "title.jpg"], {"ants", "bees"}),
    ],
)
def test_what_is_certain_is_read_without_asking(paths, expected):
    assert labels(*paths) == expected


def test_a_person_may_say_which_folders_are_classes():
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


def test_a_form_that_was_left_empty_says_nothing_of_a_layout():
    for empty in ({"classes_at": ""}, {"splits": {}}, {"classes_at": None, "splits": None, "layout": "auto"}):
        assert params.Source(path="photos", domain="garden", **empty).layout_given() == {}


def test_a_person_may_say_which_folders_are_splits():
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
def test_a_layout_that_fits_nothing_is_an_error(given, said):
    with pytest.raises(SourceError, match=said):
        read(*images("ants", "bees"), **given)


# The layout is detected once


def kept(*paths: str, **given) -> Known:
    return Known(read(*paths, **given).layout)


def test_a_layout_that_was_decided_is_kept_whatever_comes_or_goes():
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
    ],
)
def test_many_images_outside_the_layout_stop_and_the_parameter_that_decides_is_named(first, second, remedy):
    known = kept(*images(*first))
    with pytest.raises(SourceError, match=r"\d+ of \d+ images are outside its") as error:
        read(*images(*first, *second, each=6), known=known)
    assert f"set ingest.sources[].layout, classes_at or splits: {remedy}" in str(error.value)


@pytest.mark.parametrize("second", ["test", "masks", "Validation", "old/ants", "train", "2024", "cam 3", "unlabelled"])
def test_a_folder_that_comes_later_and_is_hardly_a_class_stops(second):
    known = kept(*images("ants", "bees"))
    with pytest.raises(SourceError, match=r"a class|classes beside it"):
        read(*images("ants", "bees", second), known=known)
    assert labels(*images("ants", "bees", second), known=known, classes_at=".") > {"ants", "bees"}


def test_a_class_that_was_accepted_stays_accepted():
    paths = images("images", "masks")
    layout = read(*paths, layout="class_folders").layout
    assert layout["given"] == {"layout": "class_folders"}
    train = images("train", "bus", "car")
    assert labels(*train, known=kept(*train)) == {"train", "bus", "car"}


def test_a_parameter_that_is_taken_back_decides_anew():
    paths = images("left/a", "left/b")
    known = kept(*paths, classes_at=".", layout="class_folders")
    assert read(*paths, known=known).layout["classes_at"] == "left"


def test_a_source_whose_images_have_all_moved_is_decided_anew():
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
def test_a_data_set_that_kept_no_layout_goes_on_by_the_one_it_was_made_by(paths, expected):
    depth = 1 if expected & {path.split("/")[1] for path in paths} else 0
    known = Known(labels=lambda: {path: path.split("/")[depth] for path in paths})
    assert {item.label for item in read(*paths, known=known).files.items} == expected
    if paths[0].startswith("2023"):
        more = [*paths, *images("2024/ants", "2024/bees")]
        assert {item.label for item in read(*more, known=known).files.items} == expected


def test_the_layout_is_said_in_a_line():
    layout = read(*images("2023/ants", "2023/bees")).layout
    assert layout_choice.describe(layout, "field") == "field: class folders under 2023/; 2 classes: ants, bees"
    layout = read(*images("train/ants", "test/ants")).layout
    assert layout_choice.describe(layout, "f") == "f: split folders (test/ is test, train/ is train); 1 class: ants"


# Folders without images


def test_a_class_folder_that_holds_nothing_but_junk_is_a_class_of_no_image():
    paths = [*images("ants", "bees"), "wasps/", "hornets/.DS_Store", "ants/2024/"]
    assert arrange(*paths).empty == ("hornets", "wasps")


def test_pictures_that_cannot_be_read_make_a_class_and_texts_do_not():
    found = arrange(*images("ants", "bees"), "wasps/1.heic", "flies/1.cr2", "scripts/run.py", "lists/a.csv")
    assert {item.path: item.label for item in found.items if item.problem is Reason.NOT_AN_IMAGE} == {
        "wasps/1.heic": "wasps", "flies/1.cr2": "flies", "scripts/run.py": "", "lists/a.csv": "",
    }  # fmt: skip
    assert found.notes == ["not classes, since they contain no images: lists, scripts"]


@pytest.mark.parametrize(
    "path",
    [
        "ants/._1.jpg", "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "ants/@eaDir/1.jpg", "#recycle/ants/1.jpg",
        "$RECYCLE.BIN/S-1-5/1.jpg", "System Volume Information/x.jpg", "lost+found/1.jpg", ".Trash-1000/files/1.jpg",
        "@Recycle/1.jpg", ".@__thumb/default1.jpg", ".AppleDouble/1.jpg", "ants/Picasa.ini", "ants/1.jpg.tmp",
        "ants/1.jpg~", "ants/~$1.jpg", "ants/.ipynb_checkpoints/1-checkpoint.jpg", "Previews.lrdata/a/1.jpg",
        "ants/Icon\r", "ants/ehthumbs.db", "ants/THUMBS.DB", "ants/1.jpg.crdownload", "LOST.DIR/1.jpg", "ants/1.xmp",
        "RECYCLER/S-1-5/1.jpg", "found.001/1.jpg",
        "CaptureOne/Cache/Thumbnails/1.jpg", "ants/AlbumArt_{7C2}_Large.jpg", "#snapshot/ants/1.jpg",
    ],
)  # fmt: skip
def test_junk_files_of_desktops_drives_and_programs_are_no_class_and_not_listed(path):
    found = arrange(path, *images("ants", "bees"))
    assert {item.path for item in found.items} == set(images("ants", "bees"))
    assert found.empty == ()
