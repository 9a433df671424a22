"""Folders that can be read in two ways are an error that says what was found, and every remedy that it names works."""

import re

import pytest
from ruamel.yaml import YAML

from rootstock.ingest.layout_choice import Known
from rootstock.system.errors import SourceError
from tests.layouts import images, kept, read

AMBIGUOUS = {
    "splits without classes": (images("train", "test"), "test/, train/ are named like splits, but without folders ins"),
    "one split without classes": (images("training_images"), "is named like splits, but without folders inside"),
    "nothing to train on": (images("val/a", "val/b", "test/a", "test/b"), "like test, val, and there is nothing to tr"),
    "a split beside classes": (images("ants", "bees", "test"), "test/ is named like a split, but ants/, bees/ beside "),
    "a train beside another vehicle": (
        images("train", "bus"), "train/ is named like a split, but bus/ beside it is not",
    ),
    "valid and invalid things": (images("valid", "invalid"), "valid/ is named like a split, but invalid/ beside it is"),
    "classes beside a split of them": (images("a", "b", "test/a", "test/b"), "a/, b/ beside it are not"),
    "a split beside a similar folder": (
        images("train/a", "train/b", "new/a", "new/b"), "train/ is named like a split, but ne",
    ),
    "split names within longer names": (
        images("intel_train/a", "intel_test/a"), "the folder names intel_test/, intel_train/ menti",
    ),
    "people called Test and Train": (images("Anna Test", "Bob Train"), "Anna Test/, Bob Train/ mention splits"),
    "splits below classes": (images("a/train", "a/test", "b/train", "b/test"), "each contain test/, train/, named lik"),
    "a split among classes of splits": (images("train/a", "train/dev", "test/a", "test/b"), "dev/, named like a split"),
    "splits with one folder of images": (
        images("train/images", "test/images"), "test/, train/ are named like splits, but witho",
    ),
    "colour and grey copies": (images("color/a", "color/b", "grey/a", "grey/b"), "color/, grey/ contain the same"),
    "images and masks": (images("images", "masks"), "masks/, named like masks or annotations, would be a class beside"),
    "images in classes and masks": (images("x/images/a", "x/images/b", "x/masks/a", each=20), "masks/, named like mas"),
    "images and labels, of splits": (images("train/images", "train/labels", "val/images", "val/labels"), "labels/, "),
    "Pascal VOC": (images("VOC/JPEGImages", "VOC/SegmentationClass"), "SegmentationClass/, named like masks"),
    "an image and its mask": (images("image", "mask"), "mask/, named like masks or annotations, would be a class"),
    "annotations beside classes": (images("ants", "bees", "Annotations"), "would be a class beside ants/, bees/"),
    "the same classes in each folder": (
        images("left/a", "left/b", "right/a", "right/b"), "left/, right/ contain the same",
    ),
    "the same folders in each split": (
        images("train/l/a", "train/l/b", "train/r/a", "train/r/b", "test/l/a"), "l/, r/ contai",
    ),
    "domains with images": (images("dslr/images/a", "dslr/images/b", "web/images/a", "web/images/b"), "contain the sa"),
    "cameras of one class": (images("bees/cam1", "bees/cam2"), "all images are in bees/, in the folders cam1/, cam2/"),
    "years of one class": (images("photos/2023", "photos/2024"), "in the folders 2023/, 2024/, which are probably not"),
    "cameras": (images("cam1", "cam2"), "all images are in the folders cam1/, cam2/, which are probably not classes"),
    "parts of a dataset": (
        images("HAM_images_part_1", "HAM_images_part_2"), "HAM_images_part_2/, which are probably not",
    ),
    "numbered parts": (images("images_001", "images_002"), "images_001/, images_002/, which are probably not classes"),
    "all classes again in misc": (
        images("ants", "bees", "misc/ants", "misc/bees"), "misc/ contains ants/, bees/, which are",
    ),
    "a dataset within itself": (
        images("yes", "no", "tumours/yes", "tumours/no"), "tumours/ contains no/, yes/, which are",
    ),
    "masks of a split": (images("ants", "bees", "train_masks"), "train_masks/, named like masks or annotations, would"),
    "masks of a class": (images("ant", "bee", "ant_mask"), "ant_mask/, named like masks or annotations, would be a cl"),
    "masks of classes": (images("ants", "bees", "ant masks"), "ant masks/, named like masks or annotations, would be"),
    "thumbnails beside classes": (images("ants", "bees", "thumbnails"), "thumbnails/, named like masks or annotations"),
    "unlabelled images beside classes": (images("ants", "bees", "unlabelled"), "unlabelled/, named like unlabelled im"),
    "a year beside classes": (images("ants", "bees", "2024/ants", "2024/wasps", "2024/flies"), "2024/, named like a y"),
    "years and others": (images("2023/a", "2023/b", "2024/a", "old/b"), "2023/, 2024/, old/ contain the same folders"),
    "years and others, with different classes": (
        images("2023/a", "2024/b", "old/c"), "old/ contain folders (a/, b/, c/)",
    ),
    "two datasets in one folder": (
        images("x/train/a", "x/val/a", "signs/0", "signs/1"), "x/ contains train/, val/, named",
    ),
    "one class again in x": (images("ants", "bees", "x/ants", "x/wasps"), "x/ contains ants/, which is also a cl"),
    "names with special characters": (
        images("2023: a, b/x", "2023: a, b/y", "*/x", "*/y"), "contain the same folders (x/, y/)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_folders_are_an_error_that_says_what_was_found_and_how_to_decide(name):
    paths, seen = AMBIGUOUS[name]
    with pytest.raises(SourceError) as error:
        read(*paths)
    assert str(error.value).startswith("ingest.sources: photos: ")
    assert seen in str(error.value)
    assert "ingest.sources[].layout, classes_at or splits: " in str(error.value)


ADDED_LATER = {
    "another year": (["2023/ants", "2023/bees"], ["2024/ants", "2024/wasps"]),
    "a cover": (["photos/ants", "photos/bees"], ["cover"]),
    "a split of another name": (["train/ants", "train/bees"], ["new/ants", "new/bees"]),
    "masks": (["train/good", "test/good", "test/scratched"], ["ground_truth/scratched"]),
    "a copy of all": (["x/train/a", "x/test/a"], ["x/x/train/a", "x/x/test/a"]),
    "a class beside cameras": (["cam1/ants", "cam1/bees", "cam2/ants"], ["wasps"]),
    "a dataset with splits beside classes": (["ants", "bees"], ["set/train/ants", "set/test/ants"]),
    "masks beside classes": (["ants", "bees"], ["masks"]),
    "masks of images in classes": (["images/ants", "images/bees"], ["masks/ants"]),
    "a camera beside classes": (["ants", "bees"], ["cam1"]),
    "a year with classes": (["ants", "bees"], ["2024/ants", "2024/wasps"]),
    "a folder called train": (["ants", "bees"], ["train"]),
    "splits of the same classes": (["ants", "bees"], ["train/ants", "train/bees", "test/ants"]),
    "a further split": (["train/ants", "test/ants"], ["validation/ants"]),
}


@pytest.mark.parametrize("name", [*AMBIGUOUS, *ADDED_LATER])
def test_each_remedy_named_by_an_error_works_when_followed_to_the_letter(name):
    first, later = ADDED_LATER.get(name, ([], []))
    paths = images(*first, *later, each=20) if first else AMBIGUOUS[name][0]
    known = kept(*images(*first)) if first else Known()
    with pytest.raises(SourceError) as error:
        read(*paths, known=known)
    remedies = re.findall(r'classes_at: "[^"]*"|layout: \w+|splits: {.*?: \w+}', str(error.value))
    assert remedies
    for remedy in remedies:
        found = read(*paths, known=known, **YAML(typ="safe").load(f"{{{remedy}}}")).files
        taken = [item for item in found.items if not item.problem]
        assert any("train" in item.splits for item in taken), remedy
