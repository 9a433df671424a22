"""torchvision's datasets as folders: each image in the folder of its split and class, with its bytes unchanged."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from rootstock.ingest.torchvision_sets import _class_folders, write_torchvision_set
from rootstock.system.errors import SourceError
from tests.archive_files import tar_bytes, zip_bytes
from tests.torchvision_site import EUROSAT, EUROSAT_LAID_OUT, aircraft, idx, mat, photos, tree


def test_a_dataset_without_splits_becomes_class_folders_with_unchanged_files(site, tmp_path):
    site.has({"EuroSAT.zip": zip_bytes(EUROSAT)})
    write_torchvision_set("EuroSAT", tmp_path / "out", tmp_path / "downloads")
    assert tree(tmp_path / "out") == EUROSAT_LAID_OUT


def test_flowers102_becomes_split_folders_with_class_names(site, tmp_path):
    images = photos(*(f"jpg/image_{number:05d}.jpg" for number in range(1, 7)))
    splits = {"trnid": np.array([5, 1]), "valid": np.array([2, 4]), "tstid": np.array([3, 6])}
    labels = np.array([1, 1, 2, 2, 1, 60])  # of the images in order; 60 is "pink-yellow dahlia?"
    site.has({"102flowers.tgz": tar_bytes(images, "gz")})
    site.has({"setid.mat": mat(**splits), "imagelabels.mat": mat(labels=labels)})
    write_torchvision_set("Flowers102", tmp_path / "out", tmp_path / "downloads")
    assert tree(tmp_path / "out") == {
        "train/pink primrose/image_00001.jpg": images["jpg/image_00001.jpg"],
        "train/pink primrose/image_00005.jpg": images["jpg/image_00005.jpg"],
        "val/pink primrose/image_00002.jpg": images["jpg/image_00002.jpg"],
        "val/hard-leaved pocket orchid/image_00004.jpg": images["jpg/image_00004.jpg"],
        "test/hard-leaved pocket orchid/image_00003.jpg": images["jpg/image_00003.jpg"],
        "test/pink-yellow dahlia/image_00006.jpg": images["jpg/image_00006.jpg"],
    }


def test_the_trainval_split_of_oxford_pets_becomes_train(site, tmp_path):
    names = ["Abyssinian_1", "Abyssinian_2", "yorkshire_terrier_1", "yorkshire_terrier_2"]
    images = photos(*(f"images/{name}.jpg" for name in names))
    lists = {
        "annotations/trainval.txt": b"Abyssinian_1 1 1 1\nyorkshire_terrier_1 2 2 1\n",
        "annotations/test.txt": b"Abyssinian_2 1 1 1\nyorkshire_terrier_2 2 2 1\n",
    }
    site.has({"images.tar.gz": tar_bytes(images, "gz"), "annotations.tar.gz": tar_bytes(lists, "gz")})
    write_torchvision_set("OxfordIIITPet", tmp_path / "out", tmp_path / "downloads")
    assert tree(tmp_path / "out") == {
        "train/Abyssinian/Abyssinian_1.jpg": images["images/Abyssinian_1.jpg"],
        "train/Yorkshire Terrier/yorkshire_terrier_1.jpg": images["images/yorkshire_terrier_1.jpg"],
        "test/Abyssinian/Abyssinian_2.jpg": images["images/Abyssinian_2.jpg"],
        "test/Yorkshire Terrier/yorkshire_terrier_2.jpg": images["images/yorkshire_terrier_2.jpg"],
    }


def test_a_dataset_of_arrays_becomes_png_files_with_the_same_pixels(site, tmp_path):
    train, test = np.random.default_rng(0).integers(0, 256, (2, 3, 28, 28), dtype=np.uint8)
    site.has(
        {
            "train-images-idx3-ubyte.gz": idx(train),
            "train-labels-idx1-ubyte.gz": idx(np.array([7, 0, 7])),
            "t10k-images-idx3-ubyte.gz": idx(test),
            "t10k-labels-idx1-ubyte.gz": idx(np.array([0, 1, 2])),
        }
    )
    write_torchvision_set("FashionMNIST", tmp_path / "out", tmp_path / "downloads")
    expected = {
        "train/Sneaker/000000.png": train[0],
        "train/T-shirt-top/000001.png": train[1],
        "train/Sneaker/000002.png": train[2],
        "test/T-shirt-top/000000.png": test[0],
        "test/Trouser/000001.png": test[1],
        "test/Pullover/000002.png": test[2],
    }
    assert sorted(tree(tmp_path / "out")) == sorted(expected)
    for name, pixels in expected.items():
        assert (np.asarray(Image.open(tmp_path / "out" / name)) == pixels).all()


def test_no_image_is_in_two_splits_if_a_dataset_lists_trainval_too(site, tmp_path):
    site.has({"fgvc-aircraft-2013b.tar.gz": tar_bytes(aircraft(), "gz")})
    write_torchvision_set("FGVCAircraft", tmp_path / "out", tmp_path / "downloads")
    expected = ["test/F-16A-B/3.jpg", "train/747-100/1.jpg", "val/F-16A-B/2.jpg"]
    assert sorted(tree(tmp_path / "out")) == expected


def test_classes_that_would_share_a_folder_are_numbered():
    assert _class_folders(SimpleNamespace(classes=["a/b", "a:b"])) == ["000 a-b", "001 a-b"]
    assert _class_folders(SimpleNamespace(classes=["A", "a", "b"])) == ["000 A", "001 a", "002 b"]
    assert _class_folders(SimpleNamespace(classes=["..", "x"])) == ["000", "001 x"]


# Files downloaded by hand


def lines(*rows: str) -> bytes:
    return "\n".join(rows).encode()


# Unpacked as torchvision expects them: the files of each set, and where its images belong.
DOWNLOADED_BY_HAND = {
    "DTD": (
        {
            **photos(*(f"dtd/dtd/images/{name}.jpg" for name in ("banded/b_1", "banded/b_2", "dotted/d_1"))),
            "dtd/dtd/labels/train1.txt": lines("banded/b_1.jpg", "dotted/d_1.jpg"),
            "dtd/dtd/labels/val1.txt": lines("banded/b_2.jpg"),
            "dtd/dtd/labels/test1.txt": b"",
        },
        ["train/banded/b_1.jpg", "train/dotted/d_1.jpg", "val/banded/b_2.jpg"],
    ),
    "Food101": (
        {
            **photos(*(f"food-101/images/{name}.jpg" for name in ("pizza/1", "pizza/2", "ramen/1"))),
            "food-101/meta/train.json": json.dumps({"pizza": ["pizza/1"], "ramen": ["ramen/1"]}).encode(),
            "food-101/meta/test.json": json.dumps({"pizza": ["pizza/2"], "ramen": []}).encode(),
        },
        ["test/pizza/2.jpg", "train/pizza/1.jpg", "train/ramen/1.jpg"],
    ),
    "GTSRB": (
        {
            **photos("gtsrb/GTSRB/Training/00000/0_1.ppm", "gtsrb/GTSRB/Training/00001/1_1.ppm"),
            **photos("gtsrb/GTSRB/Final_Test/Images/7.ppm"),
            "gtsrb/GT-final_test.csv": lines("Filename;Width;ClassId", "7.ppm;8;1"),
        },
        ["test/001/7.ppm", "train/000/0_1.ppm", "train/001/1_1.ppm"],
    ),
    "Imagenette": (
        photos(
            "imagenette2/train/n01440764/t.jpeg",
            "imagenette2/train/n03028079/c.jpeg",
            "imagenette2/val/n01440764/v.jpeg",
            "imagenette2/val/n03028079/w.jpeg",
        ),
        ["train/church/c.jpeg", "train/tench/t.jpeg", "val/church/w.jpeg", "val/tench/v.jpeg"],
    ),
    "SUN397": (
        {
            **photos("SUN397/a/abbey/sun_1.jpg", "SUN397/a/apartment_building/outdoor/sun_1.jpg"),
            "SUN397/ClassName.txt": lines("/a/abbey", "/a/apartment_building/outdoor"),
        },
        ["abbey/sun_1.jpg", "apartment_building-outdoor/sun_1.jpg"],
    ),
    "Country211": (
        photos(*(f"country211/{split}/AD/{split}.jpg" for split in ("train", "valid", "test"))),
        ["test/AD/test.jpg", "train/AD/train.jpg", "val/AD/valid.jpg"],
    ),
    "RenderedSST2": (
        photos(
            *(f"rendered-sst2/{split}/negative/1.png" for split in ("train", "valid", "test")),
            *(f"rendered-sst2/{split}/positive/1.png" for split in ("train", "valid", "test")),
        ),
        [f"{split}/{name}/1.png" for split in ("test", "train", "val") for name in ("negative", "positive")],
    ),
    "Caltech101": (
        photos(
            "caltech101/101_ObjectCategories/BACKGROUND_Google/image_0001.jpg",
            "caltech101/101_ObjectCategories/ant/image_0001.jpg",
            "caltech101/101_ObjectCategories/bass/image_0001.jpg",
        ),
        ["ant/image_0001.jpg", "bass/image_0001.jpg"],
    ),
    "Caltech256": (
        photos(
            "caltech256/256_ObjectCategories/001.ak47/001_0001.jpg",
            "caltech256/256_ObjectCategories/002.bat/002_0001.jpg",
        ),
        ["001.ak47/001_0001.jpg", "002.bat/002_0001.jpg"],
    ),
    "CLEVRClassification": (  # its class is the number of objects, and its test images have none
        {
            **photos(*(f"clevr/CLEVR_v1.0/images/{split}/1.png" for split in ("train", "val", "test"))),
            **{
                f"clevr/CLEVR_v1.0/scenes/CLEVR_{split}_scenes.json": json.dumps(
                    {"scenes": [{"image_filename": "1.png", "objects": [{}, {}, {}]}]}
                ).encode()
                for split in ("train", "val")
            },
        },
        ["train/003/1.png", "val/003/1.png"],
    ),
}


@pytest.mark.parametrize("name", DOWNLOADED_BY_HAND)
def test_files_downloaded_by_hand_are_used_without_a_download(site, tmp_path, name):
    given, expected = DOWNLOADED_BY_HAND[name]
    for path, content in given.items():
        (tmp_path / "downloads" / name / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "downloads" / name / path).write_bytes(content)
    write_torchvision_set(name, tmp_path / "out", tmp_path / "downloads")
    laid_out = tree(tmp_path / "out")
    assert sorted(laid_out) == sorted(expected)
    assert set(laid_out.values()) <= set(given.values())
    assert len(set(laid_out.values())) == len(laid_out)
    assert site.asked == []


def test_stanford_cars_can_only_be_downloaded_by_hand(site, tmp_path):
    downloads = tmp_path / "downloads"
    with pytest.raises(SourceError, match="StanfordCars cannot be loaded: The original URL is broken"):
        write_torchvision_set("StanfordCars", tmp_path / "out", downloads)
    cars = downloads / "StanfordCars" / "stanford_cars"
    record = np.dtype([("fname", object), ("class", object)])
    annotations = np.array([("1.jpg", 2), ("2.jpg", 1)], dtype=record)
    classes = np.array(["AM General Hummer SUV 2000", "Ram C/V Cargo Van 2012"], dtype=object)
    contents = {
        **photos("cars_train/1.jpg", "cars_train/2.jpg", "cars_test/1.jpg", "cars_test/2.jpg"),
        "devkit/cars_train_annos.mat": mat(annotations=annotations),
        "cars_test_annos_withlabels.mat": mat(annotations=annotations),
        "devkit/cars_meta.mat": mat(class_names=classes),
    }
    for path, content in contents.items():
        (cars / path).parent.mkdir(parents=True, exist_ok=True)
        (cars / path).write_bytes(content)
    write_torchvision_set("StanfordCars", tmp_path / "out", downloads)
    assert sorted(tree(tmp_path / "out")) == [
        f"{split}/{name}"
        for split in ("test", "train")
        for name in ("AM General Hummer SUV 2000/2.jpg", "Ram C-V Cargo Van 2012/1.jpg")
    ]
