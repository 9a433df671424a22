"""torchvision's datasets, with tiny stand-ins for the archives, downloaded by its own code from a local site."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from functools import partial
from hashlib import file_digest
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import utils

from rootstock.ingest.torchvision_sets import SETS, _class_folders, _splits, write_torchvision_set
from rootstock.system.errors import SourceError


def jpeg(name: str) -> bytes:
    """A small photo whose bytes depend on its name, so that files cannot be confused."""
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def photos(*names: str) -> dict[str, bytes]:
    return {name: jpeg(name) for name in names}


def zipped(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def mat(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, arrays)
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files."""
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes())


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class Site:
    """A local web site: its files, and the requests it received."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def log_request(self, code="-", size="-"):
                site.asked.append(self.path.lstrip("/"))

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server.server_port}/"

    def has(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            (self.folder / name).write_bytes(content)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The site that replaces the real ones for torchvision; files as served have the right checksums."""
    folder = tmp_path / "site"
    folder.mkdir()
    site = Site(folder)
    threading.Thread(target=site.server.serve_forever, args=(0.01,), daemon=True).start()
    redirect = utils._get_redirect_url

    def check_md5(path, md5):
        served = folder / Path(path).name
        if not served.exists():
            return True
        with served.open("rb") as one, Path(path).open("rb") as other:
            return file_digest(one, "md5").digest() == file_digest(other, "md5").digest()

    def to_site(url, max_hops):
        return redirect(site.address + PurePosixPath(urlparse(url).path).name, max_hops)

    monkeypatch.setattr(utils, "_get_redirect_url", to_site)
    monkeypatch.setattr(utils, "check_md5", check_md5)
    yield site
    site.server.shutdown()
    site.server.server_close()


EUROSAT = photos("2750/Forest/Forest_1.jpg", "2750/Forest/Forest_2.jpg", "2750/River/River_1.jpg")
EUROSAT_LAID_OUT = {name.removeprefix("2750/"): content for name, content in EUROSAT.items()}


def test_a_set_without_splits_is_laid_out_by_class_with_its_bytes_untouched(site, tmp_path):
    site.has({"EuroSAT.zip": zipped(EUROSAT)})
    write_torchvision_set("EuroSAT", tmp_path / "out", tmp_path / "downloads")
    assert tree(tmp_path / "out") == EUROSAT_LAID_OUT


def test_flowers_are_laid_out_by_split_and_class_name(site, tmp_path):
    images = photos(*(f"jpg/image_{number:05d}.jpg" for number in range(1, 7)))
    splits = {"trnid": np.array([5, 1]), "valid": np.array([2, 4]), "tstid": np.array([3, 6])}
    labels = np.array([1, 1, 2, 2, 1, 60])  # of the images in order; 60 is "pink-yellow dahlia?"
    site.has({"102flowers.tgz": tarred(images)})
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


def test_pets_have_their_trainval_as_train(site, tmp_path):
    names = ["Abyssinian_1", "Abyssinian_2", "yorkshire_terrier_1", "yorkshire_terrier_2"]
    images = photos(*(f"images/{name}.jpg" for name in names))
    lists = {
        "annotations/trainval.txt": b"Abyssinian_1 1 1 1\nyorkshire_terrier_1 2 2 1\n",
        "annotations/test.txt": b"Abyssinian_2 1 1 1\nyorkshire_terrier_2 2 2 1\n",
    }
    site.has({"images.tar.gz": tarred(images), "annotations.tar.gz": tarred(lists)})
    write_torchvision_set("OxfordIIITPet", tmp_path / "out", tmp_path / "downloads")
    assert tree(tmp_path / "out") == {
        "train/Abyssinian/Abyssinian_1.jpg": images["images/Abyssinian_1.jpg"],
        "train/Yorkshire Terrier/yorkshire_terrier_1.jpg": images["images/yorkshire_terrier_1.jpg"],
        "test/Abyssinian/Abyssinian_2.jpg": images["images/Abyssinian_2.jpg"],
        "test/Yorkshire Terrier/yorkshire_terrier_2.jpg": images["images/yorkshire_terrier_2.jpg"],
    }


def test_a_set_of_arrays_becomes_png_files_of_the_same_pixels(site, tmp_path):
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


def aircraft() -> dict[str, bytes]:
    """FGVCAircraft lists its images as train, val, trainval and test, and has no checksum."""
    data = "fgvc-aircraft-2013b/data"
    return {
        **photos(*(f"{data}/images/{number}.jpg" for number in (1, 2, 3))),
        f"{data}/variants.txt": b"747-100\nF-16A/B\n",
        f"{data}/images_variant_train.txt": b"1 747-100\n",
        f"{data}/images_variant_val.txt": b"2 F-16A/B\n",
        f"{data}/images_variant_trainval.txt": b"1 747-100\n2 F-16A/B\n",
        f"{data}/images_variant_test.txt": b"3 F-16A/B\n",
    }


def test_no_image_is_in_two_splits_where_a_set_lists_trainval_too(site, tmp_path):
    site.has({"fgvc-aircraft-2013b.tar.gz": tarred(aircraft())})
    write_torchvision_set("FGVCAircraft", tmp_path / "out", tmp_path / "downloads")
    expected = ["test/F-16A-B/3.jpg", "train/747-100/1.jpg", "val/F-16A-B/2.jpg"]
    assert sorted(tree(tmp_path / "out")) == expected


def lines(*rows: str) -> bytes:
    return "\n".join(rows).encode()


# Unpacked as torchvision expects them: the files of each set, and where its images belong.
BY_HAND = {
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


@pytest.mark.parametrize("name", BY_HAND)
def test_files_put_there_by_hand_are_laid_out_without_a_download(site, tmp_path, name):
    given, expected = BY_HAND[name]
    for path, content in given.items():
        (tmp_path / "downloads" / name / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "downloads" / name / path).write_bytes(content)
    write_torchvision_set(name, tmp_path / "out", tmp_path / "downloads")
    laid_out = tree(tmp_path / "out")
    assert sorted(laid_out) == sorted(expected)
    assert set(laid_out.values()) <= set(given.values())
    assert len(set(laid_out.values())) == len(laid_out)
    assert site.asked == []


def test_stanford_cars_cannot_be_downloaded_but_can_be_put_there(site, tmp_path):
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


def test_a_set_that_is_there_is_not_downloaded_again(site, tmp_path):
    site.has({"EuroSAT.zip": zipped(EUROSAT)})
    write_torchvision_set("EuroSAT", tmp_path / "out", tmp_path / "downloads")
    site.asked.clear()
    write_torchvision_set("EuroSAT", tmp_path / "again", tmp_path / "downloads")
    assert tree(tmp_path / "again") == tree(tmp_path / "out")
    assert site.asked == []


def test_a_run_killed_while_unpacking_is_finished_without_a_second_download(site, tmp_path):
    site.has({"EuroSAT.zip": zipped(EUROSAT)})
    left = tmp_path / "downloads" / "EuroSAT.tmp" / "eurosat"
    (left / "2750" / "Forest").mkdir(parents=True)
    (left / "2750" / "Forest" / "Forest_1.jpg").write_bytes(EUROSAT["2750/Forest/Forest_1.jpg"][:100])
    (left / "EuroSAT.zip").write_bytes(zipped(EUROSAT))
    write_torchvision_set("EuroSAT", tmp_path / "out", tmp_path / "downloads")
    assert len(tree(tmp_path / "out")) == len(EUROSAT)
    assert tree(tmp_path / "out")["Forest/Forest_1.jpg"] == EUROSAT["2750/Forest/Forest_1.jpg"]
    assert site.asked == []


def test_the_files_are_linked_to_the_download_where_the_disk_allows(site, tmp_path):
    site.has({"EuroSAT.zip": zipped(EUROSAT)})
    write_torchvision_set("EuroSAT", tmp_path / "out", tmp_path / "downloads")
    original = tmp_path / "downloads" / "EuroSAT" / "eurosat" / "2750" / "River" / "River_1.jpg"
    assert (tmp_path / "out" / "River" / "River_1.jpg").samefile(original)


def test_the_files_are_copied_where_links_cannot_be_made(site, tmp_path, monkeypatch):
    def refuse(*paths, **options):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    site.has({"EuroSAT.zip": zipped(EUROSAT)})
    write_torchvision_set("EuroSAT", tmp_path / "out", tmp_path / "downloads")
    assert tree(tmp_path / "out") == EUROSAT_LAID_OUT


def test_a_missing_archive_is_an_error_that_names_set_reason_and_remedy(site, tmp_path):
    with pytest.raises(SourceError) as raised:
        write_torchvision_set("Flowers102", tmp_path / "out", tmp_path / "downloads")
    message = str(raised.value)
    assert "torchvision:Flowers102" in message
    assert "HTTP Error 404" in message
    assert "102flowers.tgz" in message
    assert str(tmp_path / "downloads" / "Flowers102") in message
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "downloads" / "Flowers102").exists()


def test_a_site_that_does_not_answer_is_an_error_and_what_had_arrived_is_kept(site, tmp_path):
    site.has({"images.tar.gz": tarred(photos("images/a_1.jpg"))})
    with pytest.raises(SourceError, match=r"torchvision:OxfordIIITPet cannot be loaded: .*404"):
        write_torchvision_set("OxfordIIITPet", tmp_path / "out", tmp_path / "downloads")
    site.asked.clear()
    site.has({"annotations.tar.gz": b""})
    site.server.server_close()
    site.server.shutdown()
    with pytest.raises(SourceError, match=r"torchvision:OxfordIIITPet cannot be loaded: .*refused"):
        write_torchvision_set("OxfordIIITPet", tmp_path / "out", tmp_path / "downloads")
    assert (tmp_path / "downloads" / "OxfordIIITPet.tmp" / "oxford-iiit-pet" / "images.tar.gz").exists()


@pytest.mark.parametrize("damage", ["cut short", "bytes lost inside", "a page of HTML"])
def test_a_damaged_archive_is_not_taken_again(site, tmp_path, damage):
    whole = tarred(aircraft())
    damaged = {
        "cut short": whole[: len(whole) // 2],
        "bytes lost inside": whole[:200] + whole[210:],
        "a page of HTML": b"<html>Moved</html>",
    }
    site.has({"fgvc-aircraft-2013b.tar.gz": damaged[damage]})
    with pytest.raises(SourceError, match="torchvision:FGVCAircraft cannot be loaded"):
        write_torchvision_set("FGVCAircraft", tmp_path / "out", tmp_path / "downloads")
    site.has({"fgvc-aircraft-2013b.tar.gz": whole})
    write_torchvision_set("FGVCAircraft", tmp_path / "out", tmp_path / "downloads")
    assert len(tree(tmp_path / "out")) == 3


def test_an_incomplete_download_folder_is_an_error_that_says_to_remove_it(site, tmp_path):
    (tmp_path / "downloads" / "EuroSAT").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"Dataset not found\. If .*/downloads/EuroSAT is damaged, remove it"):
        write_torchvision_set("EuroSAT", tmp_path / "out", tmp_path / "downloads")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("flowers102", "Flowers102"), ("OxfordPet", "OxfordIIITPet"), ("Cifar-10", "CIFAR10")],
)
def test_a_misspelt_set_is_an_error_that_names_the_nearest(tmp_path, wrong, nearest):
    with pytest.raises(SourceError, match=rf"torchvision:{wrong} .* Did you mean {nearest}\b"):
        write_torchvision_set(wrong, tmp_path / "out", tmp_path / "downloads")


@pytest.mark.parametrize("name", ["CocoDetection", "ImageFolder", "VOCSegmentation", "__doc__", "../EuroSAT"])
def test_what_is_no_classification_set_is_an_error(tmp_path, name):
    with pytest.raises(SourceError, match="is not an image classification dataset of torchvision; expected one"):
        write_torchvision_set(name, tmp_path / "out", tmp_path / "downloads")
    assert not list(tmp_path.iterdir())


def test_every_set_exists_in_torchvision_and_its_splits_are_known():
    both, three, none = ["train", "test"], ["train", "val", "test"], [""]
    assert {name: list(_splits(name)) for name in SETS if name != "PCAM"} == {
        **dict.fromkeys(["CIFAR10", "CIFAR100", "EMNIST", "FashionMNIST", "KMNIST", "MNIST", "QMNIST"], both),
        **dict.fromkeys(["USPS", "Food101", "GTSRB", "OxfordIIITPet", "StanfordCars", "STL10", "SVHN"], both),
        **dict.fromkeys(["CLEVRClassification", "Country211", "DTD", "FGVCAircraft", "Flowers102"], three),
        **dict.fromkeys(["Places365", "RenderedSST2"], three),
        "Imagenette": ["train", "val"],
        **dict.fromkeys(["Caltech101", "Caltech256", "EuroSAT", "INaturalist", "Omniglot"], none),
        **dict.fromkeys(["SEMEION", "SUN397"], none),
    }


def test_classes_whose_folders_would_be_one_are_numbered():
    assert _class_folders(SimpleNamespace(classes=["a/b", "a:b"])) == ["000 a-b", "001 a-b"]
    assert _class_folders(SimpleNamespace(classes=["A", "a", "b"])) == ["000 A", "001 a", "002 b"]
    assert _class_folders(SimpleNamespace(classes=["..", "x"])) == ["000", "001 x"]


def test_importing_the_module_loads_neither_torch_nor_torchvision():
    code = "import sys, rootstock.ingest.torchvision_sets; print(*{'torch', 'torchvision', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
