"""The layout of a source is detected where its folders are unambiguous."""

import pytest

from tests.layouts import images, labels, read, splits


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
def test_split_folders_are_recognised_by_other_common_names(folders, expected):
    paths = images(*(f"set/{folder}/{label}" for folder in folders for label in ("ants", "bees")))
    assert labels(*paths) == {"ants", "bees"}
    assert set(read(*paths).layout["splits"].values()) == expected
    assert set(read(*paths).layout["splits"]) == {f"set/{folder}" for folder in folders}


def test_of_dev_and_eval_folders_dev_is_val_and_eval_is_test():
    paths = images(*(f"{split}/{label}" for split in ("train", "dev", "eval") for label in ("ants", "bees")))
    assert splits(*paths) == {"train": ("train",), "dev": ("val",), "eval": ("test",)}


@pytest.mark.parametrize("inner", [("seg_train", "seg_test"), ("images", "images"), ("train", "test")])
def test_a_folder_between_a_split_and_its_classes_is_ignored(inner):
    outer = ("seg_train", "seg_test")
    paths = images(*(f"{o}/{i}/{label}" for o, i in zip(outer, inner, strict=True) for label in ("sea", "street")))
    assert labels(*paths, *images("seg_pred/seg_pred", each=20)) == {"sea", "street"}


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
def test_unambiguous_folders_are_read_without_asking(paths, expected):
    assert labels(*paths) == expected
