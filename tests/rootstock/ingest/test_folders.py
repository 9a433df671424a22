"""Folders as sources: what they list, which links are followed, and what is read of their files."""

import os
from pathlib import Path

import pytest

from rootstock.images.inspection import MAX_FILE_BYTES, Reason, Rejected
from rootstock.ingest import walk
from rootstock.system import files
from rootstock.system.errors import SourceError
from tests.images import put, put_classes
from tests.listing import CLASSES, PATHS, contents, drawn, labels, problems, splits


def test_a_folder_source_lists_its_images_with_their_labels_and_reads_their_bytes(listed, five_photos):
    source = listed(five_photos)
    assert labels(source) == {path: path.split("/")[0] for path in PATHS}
    assert contents(source) == {path: drawn(number) for number, path in enumerate(PATHS)}


def test_only_the_requested_files_are_read(listed, five_photos):
    assert list(contents(listed(five_photos), {"bees/00.png"})) == ["bees/00.png"]


def test_a_stamp_changes_if_and_only_if_the_file_changes(listed, five_photos):
    def stamps() -> dict[str, str]:
        return {item.path: item.stamp for item in listed(five_photos).items}

    before = stamps()
    assert stamps() == before
    put(five_photos / "ants" / "00.png", 77)
    assert {path for path, stamp in stamps().items() if stamp != before[path]} == {"ants/00.png"}


def test_split_folders_determine_the_splits_and_are_noted(listed, tmp_path):
    for number, split in enumerate(("train", "val")):
        put_classes(tmp_path / "photos" / split, {"ants": 1}, number)
    source = listed(tmp_path / "photos")
    assert splits(source) == {"train/ants/00.png": ("train", "val"), "val/ants/00.png": ("test",)}
    assert source.notes == ["no test folder: val becomes the test split, and validation is drawn from train"]


def test_files_with_names_that_are_not_utf_8_are_listed_with_escapes_and_read(listed, five_photos):
    folder = os.fsencode(five_photos / "ants")
    put(Path(os.fsdecode(folder + b"/k\xe4fer.png")), drawn(9))
    source = listed(five_photos)
    assert contents(source)[r"ants/k\xe4fer.png"] == drawn(9)


def test_a_file_url_names_a_local_folder(listed, five_photos):
    assert contents(listed(f"file://{five_photos}")) == contents(listed(five_photos))


# Links


def test_links_to_class_folders_and_to_images_are_followed(listed, tmp_path):
    pool = put_classes(tmp_path / "pool", CLASSES)
    photos = tmp_path / "photos"
    (photos / "bees").mkdir(parents=True)
    (photos / "ants").symlink_to(pool / "ants")
    (photos / "bees" / "a.png").symlink_to(pool / "bees" / "00.png")
    source = listed(photos)
    assert labels(source) == {f"ants/{n:02d}.png": "ants" for n in range(3)} | {"bees/a.png": "bees"}
    assert contents(source)["bees/a.png"] == drawn(3)


def test_the_stamp_of_a_linked_image_is_that_of_its_target(listed, tmp_path):
    target = put(tmp_path / "pool" / "1.png", 1)
    (tmp_path / "photos" / "ants").mkdir(parents=True)
    (tmp_path / "photos" / "ants" / "a.png").symlink_to(target)
    before = listed(tmp_path / "photos").items[0].stamp
    os.utime(target, (1, 1))
    assert listed(tmp_path / "photos").items[0].stamp != before


def test_links_in_a_cycle_are_followed_only_once(listed, five_photos):
    (five_photos / "ants" / "up").symlink_to(five_photos)
    (five_photos / "bees" / "across").symlink_to(five_photos / "ants")
    assert set(PATHS) <= set(labels(listed(five_photos)))


@pytest.mark.parametrize("target", ["{name}", "other", "/no/such/place", "{name}/x", "ants/00.png/x"])
@pytest.mark.parametrize("name", ["wasps", "ants/99.png"])
def test_a_broken_link_or_one_to_itself_affects_no_other_file(listed, five_photos, target, name):
    (five_photos / "other").symlink_to("other")
    (five_photos / name).symlink_to(target.format(name=Path(name).name))
    source = listed(five_photos)
    assert {path: label for path, label in labels(source).items() if path in PATHS} == {
        path: path.split("/")[0] for path in PATHS
    }
    assert set(source.empty) == {"other"} | ({"wasps"} if name == "wasps" else set())


def test_each_of_two_links_to_one_folder_lists_its_files_under_its_own_name(listed, tmp_path):
    pool = put_classes(tmp_path / "pool", CLASSES)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("ants", "emmets"):
        (photos / name).symlink_to(pool / "ants")
    assert labels(listed(photos)) == {f"{name}/{n:02d}.png": name for name in ("ants", "emmets") for n in range(3)}
    (tmp_path / "linked").symlink_to(photos)
    assert labels(listed(tmp_path / "linked")) == labels(listed(photos))


def test_links_between_folders_are_followed_only_once_and_too_many_links_are_an_error(listed, tmp_path, monkeypatch):
    photos = put_classes(tmp_path / "photos", {"ants": 1, "bees": 1})
    for name in ("ants", "bees"):
        for other in ("ants", "bees"):
            (photos / name / f"to {other}").symlink_to(photos / other)
        (photos / name / "up").symlink_to(tmp_path)
    found = labels(listed(photos, classes_at="."))
    assert found == {
        "ants/00.png": "ants", "ants/to bees/00.png": "ants", "bees/00.png": "bees", "bees/to ants/00.png": "bees"
    }  # fmt: skip
    monkeypatch.setattr(walk, "MAX_LINKS", 50)
    ring = tmp_path / "ring"
    for name in "abcdefgh":
        put(ring / name / "1.png", ord(name))
    for name in "abcdefgh":
        for other in "abcdefgh":
            (ring / name / f"to {other}").symlink_to(ring / other)
    with pytest.raises(SourceError, match=r"more than 50 links lead to .*/ring/., including .*: they seem to be"):
        listed(ring, classes_at=".")


# Files that cannot be read


def test_a_broken_link_is_unreadable_and_neither_it_nor_a_pipe_affects_other_files(listed, five_photos):
    (five_photos / "ants" / "gone.png").symlink_to(five_photos / "nowhere.png")
    os.mkfifo(five_photos / "ants" / "pipe.png")
    found = contents(listed(five_photos))
    assert found.pop("ants/gone.png") is Reason.UNREADABLE
    assert sorted(found) == PATHS


def test_a_file_that_vanishes_after_listing_is_unreadable(listed, five_photos):
    source = listed(five_photos)
    (five_photos / "ants" / "00.png").unlink()
    assert contents(source)["ants/00.png"] is Reason.UNREADABLE


def test_a_file_too_large_to_be_an_image_is_not_read(listed, five_photos):
    with (five_photos / "ants" / "video.jpg").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # a sparse file
    assert problems(listed(five_photos)) == {"ants/video.jpg": Reason.TOO_LARGE}


@pytest.mark.timeout(60)
def test_a_file_replaced_by_a_pipe_or_device_is_unreadable_and_does_not_block_reading(listed, five_photos):
    source = listed(five_photos)
    (five_photos / "ants/00.png").unlink()
    os.mkfifo(five_photos / "ants/00.png")
    (five_photos / "ants/01.png").unlink()
    (five_photos / "ants/01.png").symlink_to("/dev/zero")
    found = {}
    for item, load in source.read({"ants/00.png", "ants/01.png", "ants/02.png"}):
        try:
            found[item.path] = len(load())
        except Rejected as rejected:
            found[item.path] = rejected.reason
    assert found.pop("ants/02.png") > 100
    assert found == {"ants/00.png": Reason.UNREADABLE, "ants/01.png": Reason.UNREADABLE}


def test_a_file_is_read_no_further_than_the_size_limit(tmp_path, monkeypatch):
    put(tmp_path / "a", bytes(1000))
    assert len(files.read(tmp_path / "a", 500)) == 501
    with pytest.raises(OSError, match="not a regular file"):
        files.read(tmp_path, 500)
