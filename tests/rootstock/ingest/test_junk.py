"""Junk files, which desktops, cameras, network drives and programs leave in image folders, are ignored."""

import pytest

from rootstock.ingest.junk import is_junk
from tests.images import put
from tests.layouts import arrange, images
from tests.listing import PATHS


@pytest.mark.parametrize(
    "path",
    [".DS_Store", "ants/.DS_Store", "ants/._1.jpg", "__MACOSX/ants/1.jpg", "ants/Thumbs.db", ".git/x", "a/desktop.ini"],
)
def test_junk_files_are_ignored(path):
    assert is_junk(path)
    assert path not in {item.path for item in arrange(path, "ants/1.jpg").items}


@pytest.mark.parametrize("path", ["ants/1.jpg", "./ants/1.jpg", "ants/a.b.jpg", "a/../../1.jpg"])
def test_files_of_a_user_are_not_junk(path):
    assert not is_junk(path)


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
def test_junk_files_of_desktops_drives_and_programs_are_neither_listed_nor_classes(path):
    found = arrange(path, *images("ants", "bees"))
    assert {item.path for item in found.items} == set(images("ants", "bees"))
    assert found.empty == ()


def test_junk_files_in_a_folder_source_are_not_listed(listed, five_photos):
    for name in (".DS_Store", "ants/.DS_Store", "__MACOSX/ants/._00.png", ".cache/ants/1.png", "ants/Thumbs.db"):
        put(five_photos / name, b"x")
    assert [item.path for item in listed(five_photos).items] == PATHS
