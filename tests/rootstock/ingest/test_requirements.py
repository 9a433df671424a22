"""A dataset that cannot be trained on, or that lost more than half of a source, is an error that names the reason."""

import shutil
from pathlib import Path

import pytest

from rootstock.system import files
from rootstock.system.errors import SourceError
from tests.images import nearly, picture, put, put_classes

# Too few images


def test_a_class_of_two_images_is_an_error_that_counts_its_images_and_rejected_files(store, photos):
    put_classes(photos, {"hornets": 2}, first=300)
    put(photos / "hornets" / "broken.png", b"x")
    with pytest.raises(
        SourceError, match=r"'hornets' has 2 \(1 undecodable, e.g. hornets/b.*\). A class needs at least 3"
    ):
        store.ingest(photos)
    assert not (store.dataset / "manifest.parquet").exists()


def linked_to_nowhere(folder: Path) -> None:
    files.remove(folder)
    folder.symlink_to("a/disk/that/is/not/mounted")


UNUSABLE = {
    "unsupported format": (lambda path: path.rename(path.with_suffix(".heic")), "an_image, e.g. wasps/00.heic"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:200]), "truncated, e.g. wasps/00.png"),
    "wrong extension": (lambda path: path.rename(path.with_suffix(".jpg")), "wrong_extension, e.g. wasps/00.jpg"),
    "too small": (lambda path: put(path, picture(1, 6, 6)), "too_small, e.g. wasps/00.png"),
    "deleted": (Path.unlink, "its folder is empty"),
    "junk": (lambda path: path.rename(path.with_name(f"._{path.name}")), "its folder is empty"),
    "folder is a broken link": (lambda path: linked_to_nowhere(path.parent), "or a broken link"),
    "copies of another class": (
        lambda path: put(path, picture(int(path.stem))), "conflicting_label, e.g. wasps/00.png",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", UNUSABLE)
def test_a_class_without_usable_images_is_an_error_that_names_the_reason_and_a_file(store, photos, how):
    store.ingest(photos)
    before = store.bytes()
    spoil, said = UNUSABLE[how]
    for path in sorted((photos / "wasps").iterdir()):
        spoil(path)
    with pytest.raises(SourceError, match=rf"'wasps' has 0 \(.*{said}.*exclude the class"):
        store.ingest(photos)
    assert store.bytes() == before
    files.remove(photos / "wasps")
    assert set(store.ingest(photos) and store.summary["classes"]) == {"ants", "bees"}


@pytest.mark.parametrize("place", ["", "images/"])
@pytest.mark.parametrize("name", ["labels.csv", "Labels.parquet", "notes.txt"])
def test_where_a_folder_of_images_has_a_table_that_is_suggested_as_the_source(store, tmp_path, place, name):
    folder = tmp_path / "delivered"
    for number in range(6):
        put(folder / f"{place}{number}.png", picture(number))
    put(folder / name, b"path,label\n0.png,ants\n")
    with pytest.raises(SourceError, match="or a table with one label per image") as refused:
        store.ingest(folder)
    said = f"If {name} is such a table, name it as the source: path: {folder}/{name}."
    assert (said in str(refused.value)) == (name != "notes.txt")


@pytest.mark.parametrize("name", ["bees copy", "bees - Copy", "Copy of bees", "bees (1)", "Kopie von bees"])
@pytest.mark.parametrize("same", [True, False])
def test_a_copied_class_folder_is_an_error_that_names_the_original(store, photos, name, same):
    if same:
        shutil.copytree(photos / "bees", photos / name)
    else:
        put_classes(photos, {name: 5}, first=400)
    with pytest.raises(SourceError) as error:
        store.ingest(photos)
    assert f"The class {name!r} (photos: {name}/00.png) looks like a copy of 'bees'" in str(error.value)
    assert ("5 of its images have both labels (conflicting_label)" in str(error.value)) == same


def test_a_single_class_is_an_error(store, tmp_path):
    with pytest.raises(SourceError, match=r"only one class, 'ants' \(5 images\); a classifier needs two"):
        store.ingest(put_classes(tmp_path / "photos", {"ants": 5}))


def test_a_source_without_usable_images_is_an_error_that_counts_the_reasons(store, tmp_path):
    put(tmp_path / "photos" / "ants" / "1.png", b"x")
    put(tmp_path / "photos" / "ants" / "2.txt", b"x")
    put(tmp_path / "photos" / "bees" / "3.png", b"x")
    with pytest.raises(SourceError, match=r"3 files \(2 undecodable, e.g. ants/1.png, 1 not_an_image, e.g. ants/2"):
        store.ingest(tmp_path / "photos")


def test_an_empty_source_folder_is_an_error(store, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(SourceError, match=r"no usable image in 0 files"):
        store.ingest(tmp_path / "photos")


def test_a_class_without_training_images_is_an_error(store, tmp_path):
    put_classes(tmp_path / "photos" / "train", {"ants": 3, "bees": 3})
    put_classes(tmp_path / "photos" / "test", {"ants": 3, "wasps": 3}, first=20)
    with pytest.raises(SourceError, match=r"no image of 'wasps' is in the train split"):
        store.ingest(tmp_path / "photos")


def test_an_empty_val_or_test_split_is_an_error(store, tmp_path):
    for number, label in enumerate(("ants", "bees")):
        for copy in range(3):
            put(tmp_path / "photos" / label / f"{copy}.png", nearly(picture(number), copy))
    with pytest.raises(SourceError, match=r"the (val|test) split has no images: too few"):
        store.ingest(tmp_path / "photos")


# Shrunken sources


def test_a_source_that_lost_more_than_half_of_its_images_is_an_error_unless_shrinking_is_allowed(store, photos):
    store.ingest(photos)
    before = store.bytes()
    for label in ("ants", "bees"):
        for path in sorted((photos / label).iterdir())[3:]:
            path.unlink()
    shutil.rmtree(photos / "wasps")
    with pytest.raises(SourceError, match=r"photos had 15 images and now has 6.*ingest.allow_shrink to true"):
        store.ingest(photos)
    assert store.bytes() == before
    assert store.ingest(photos, allow_shrink=True).images == 6


def test_a_source_may_lose_half_of_its_images(store, tmp_path):
    photos = put_classes(tmp_path / "photos", {"ants": 6, "bees": 6})
    store.ingest(photos)
    for label in ("ants", "bees"):
        for path in sorted((photos / label).iterdir())[3:]:
            path.unlink()
    assert store.ingest(photos).images == 6
