"""torchvision's datasets: each is downloaded once, by torchvision's code; each failure is an error that names the
dataset, the reason and a remedy."""

import os
import subprocess
import sys

import pytest

from rootstock.ingest.torchvision_sets import SETS, _splits, write_torchvision_set
from rootstock.system.errors import SourceError
from tests.archive_files import tar_bytes, zip_bytes
from tests.torchvision_site import EUROSAT, EUROSAT_LAID_OUT, aircraft, photos, tree

# Downloads


def test_a_downloaded_dataset_is_not_downloaded_again(site, tmp_path):
    site.has({"EuroSAT.zip": zip_bytes(EUROSAT)})
    write_torchvision_set("EuroSAT", tmp_path / "out", tmp_path / "downloads")
    site.asked.clear()
    write_torchvision_set("EuroSAT", tmp_path / "again", tmp_path / "downloads")
    assert tree(tmp_path / "again") == tree(tmp_path / "out")
    assert site.asked == []


def test_unpacking_that_was_killed_is_completed_without_a_second_download(site, tmp_path):
    site.has({"EuroSAT.zip": zip_bytes(EUROSAT)})
    left = tmp_path / "downloads" / "EuroSAT.tmp" / "eurosat"
    (left / "2750" / "Forest").mkdir(parents=True)
    (left / "2750" / "Forest" / "Forest_1.jpg").write_bytes(EUROSAT["2750/Forest/Forest_1.jpg"][:100])
    (left / "EuroSAT.zip").write_bytes(zip_bytes(EUROSAT))
    write_torchvision_set("EuroSAT", tmp_path / "out", tmp_path / "downloads")
    assert len(tree(tmp_path / "out")) == len(EUROSAT)
    assert tree(tmp_path / "out")["Forest/Forest_1.jpg"] == EUROSAT["2750/Forest/Forest_1.jpg"]
    assert site.asked == []


def test_images_are_hard_links_to_the_download_if_the_disk_allows(site, tmp_path):
    site.has({"EuroSAT.zip": zip_bytes(EUROSAT)})
    write_torchvision_set("EuroSAT", tmp_path / "out", tmp_path / "downloads")
    original = tmp_path / "downloads" / "EuroSAT" / "eurosat" / "2750" / "River" / "River_1.jpg"
    assert (tmp_path / "out" / "River" / "River_1.jpg").samefile(original)


def test_images_are_copied_if_hard_links_fail(site, tmp_path, monkeypatch):
    def refuse(*paths, **options):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    site.has({"EuroSAT.zip": zip_bytes(EUROSAT)})
    write_torchvision_set("EuroSAT", tmp_path / "out", tmp_path / "downloads")
    assert tree(tmp_path / "out") == EUROSAT_LAID_OUT


# Errors


def test_a_missing_archive_is_an_error_that_names_the_dataset_the_reason_and_a_remedy(site, tmp_path):
    with pytest.raises(SourceError) as raised:
        write_torchvision_set("Flowers102", tmp_path / "out", tmp_path / "downloads")
    message = str(raised.value)
    assert "torchvision:Flowers102" in message
    assert "HTTP Error 404" in message
    assert "102flowers.tgz" in message
    assert str(tmp_path / "downloads" / "Flowers102") in message
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "downloads" / "Flowers102").exists()


def test_a_site_that_does_not_answer_is_an_error_and_finished_downloads_are_kept(site, tmp_path):
    site.has({"images.tar.gz": tar_bytes(photos("images/a_1.jpg"), "gz")})
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
def test_a_damaged_archive_is_an_error_and_downloaded_again_by_the_next_run(site, tmp_path, damage):
    whole = tar_bytes(aircraft(), "gz")
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
def test_a_misspelt_dataset_is_an_error_that_suggests_a_name(tmp_path, wrong, nearest):
    with pytest.raises(SourceError, match=rf"torchvision:{wrong} .* Did you mean {nearest}\b"):
        write_torchvision_set(wrong, tmp_path / "out", tmp_path / "downloads")


@pytest.mark.parametrize("name", ["CocoDetection", "ImageFolder", "VOCSegmentation", "__doc__", "../EuroSAT"])
def test_a_name_that_is_not_a_classification_dataset_is_an_error(tmp_path, name):
    with pytest.raises(SourceError, match="is not an image classification dataset of torchvision; expected one"):
        write_torchvision_set(name, tmp_path / "out", tmp_path / "downloads")
    assert not list(tmp_path.iterdir())


# Which sets


def test_every_dataset_exists_in_torchvision_with_known_splits():
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


def test_importing_the_module_loads_neither_torch_nor_torchvision():
    code = "import sys, rootstock.ingest.torchvision_sets; print(*{'torch', 'torchvision', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
