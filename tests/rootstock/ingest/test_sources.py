"""Folders, archives and manifests, local, in memory and remote: what they list, and what is read."""

import bz2
import gzip
import io
import lzma
import os
import socket
import stat
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rootstock.config import params, params_file
from rootstock.images.inspection import MAX_FILE_BYTES, Reason, Rejected
from rootstock.ingest import archives, folders, manifests, sources
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.scan import Scan
from rootstock.ingest.sources import Unreachable
from rootstock.system import files
from rootstock.system.errors import ParamsError, SourceError
from tests.images import encoded, picture, put, put_classes

CLASSES = {"ants": 3, "bees": 2}
PATHS = ["ants/00.png", "ants/01.png", "ants/02.png", "bees/00.png", "bees/01.png"]


@pytest.fixture
def scan(tmp_path):
    with Scan(tmp_path / "scratch" / "scan.sqlite") as scan:
        yield scan


@pytest.fixture
def listed(tmp_path, scan):
    """List a source by its path or URL."""
    return lambda path, domain="garden", **given: sources.open_source(
        params.Source(path=str(path), domain=domain, **given), tmp_path / "scratch", scan
    )


@pytest.fixture
def photos(tmp_path):
    return put_classes(tmp_path / "photos", CLASSES)


def labels(source) -> dict[str, str]:
    return {item.path: item.label for item in source.items if not item.problem}


def splits(source) -> dict[str, tuple[str, ...]]:
    return {item.path: item.splits for item in source.items if not item.problem}


def problems(source) -> dict[str, Reason]:
    return {item.path: item.problem for item in source.items if item.problem}


def contents(source, wanted=None) -> dict[str, bytes | Reason]:
    """Read the accepted items: bytes, or the reason why a file is rejected."""
    found = {}
    for item, load in source.read(wanted or {item.path for item in source.items if not item.problem}):
        try:
            found[item.path] = load()
        except Rejected as rejected:
            found[item.path] = rejected.reason
    return found


def drawn(number: int) -> bytes:
    return encoded(picture(number))


# Folders


def test_a_folder_lists_its_classes_and_gives_the_bytes_of_its_files(listed, photos):
    source = listed(photos)
    assert labels(source) == {path: path.split("/")[0] for path in PATHS}
    assert contents(source) == {path: drawn(number) for number, path in enumerate(PATHS)}


def test_only_what_is_wanted_is_read(listed, photos):
    assert list(contents(listed(photos), {"bees/00.png"})) == ["bees/00.png"]


def test_a_stamp_changes_with_the_file_and_only_then(listed, photos):
    def stamps() -> dict[str, str]:
        return {item.path: item.stamp for item in listed(photos).items}

    before = stamps()
    assert stamps() == before
    put(photos / "ants" / "00.png", 77)
    assert {path for path, stamp in stamps().items() if stamp != before[path]} == {"ants/00.png"}


def test_linked_classes_and_linked_images_are_followed(listed, tmp_path):
    pool = put_classes(tmp_path / "pool", CLASSES)
    photos = tmp_path / "photos"
    (photos / "bees").mkdir(parents=True)
    (photos / "ants").symlink_to(pool / "ants")
    (photos / "bees" / "a.png").symlink_to(pool / "bees" / "00.png")
    source = listed(photos)
    assert labels(source) == {f"ants/{n:02d}.png": "ants" for n in range(3)} | {"bees/a.png": "bees"}
    assert contents(source)["bees/a.png"] == drawn(3)


def test_the_stamp_of_a_linked_image_is_that_of_what_it_leads_to(listed, tmp_path):
    target = put(tmp_path / "pool" / "1.png", 1)
    (tmp_path / "photos" / "ants").mkdir(parents=True)
    (tmp_path / "photos" / "ants" / "a.png").symlink_to(target)
    before = listed(tmp_path / "photos").items[0].stamp
    os.utime(target, (1, 1))
    assert listed(tmp_path / "photos").items[0].stamp != before


def test_links_in_a_circle_end(listed, photos):
    (photos / "ants" / "up").symlink_to(photos)
    (photos / "bees" / "across").symlink_to(photos / "ants")
    assert set(PATHS) <= set(labels(listed(photos)))


@pytest.mark.parametrize("target", ["{name}", "other", "/no/such/place", "{name}/x", "ants/00.png/x"])
@pytest.mark.parametrize("name", ["wasps", "ants/99.png"])
def test_a_link_that_leads_nowhere_or_to_itself_costs_nothing_else(listed, photos, target, name):
    (photos / "other").symlink_to("other")
    (photos / name).symlink_to(target.format(name=Path(name).name))
    source = listed(photos)
    assert {path: label for path, label in labels(source).items() if path in PATHS} == {
        path: path.split("/")[0] for path in PATHS
    }
    assert set(source.empty) == {"other"} | ({"wasps"} if name == "wasps" else set())


def test_the_second_of_two_links_to_one_folder_brings_its_files_under_its_own_name(listed, tmp_path):
    pool = put_classes(tmp_path / "pool", CLASSES)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("ants", "emmets"):
        (photos / name).symlink_to(pool / "ants")
    assert labels(listed(photos)) == {f"{name}/{n:02d}.png": name for name in ("ants", "emmets") for n in range(3)}
    (tmp_path / "linked").symlink_to(photos)
    assert labels(listed(tmp_path / "linked")) == labels(listed(photos))


def test_links_among_folders_end_and_too_many_ways_are_an_error(listed, tmp_path, monkeypatch):
    photos = put_classes(tmp_path / "photos", {"ants": 1, "bees": 1})
    for name in ("ants", "bees"):
        for other in ("ants", "bees"):
            (photos / name / f"to {other}").symlink_to(photos / other)
        (photos / name / "up").symlink_to(tmp_path)
    found = labels(listed(photos, classes_at="."))
    assert found == {
        "ants/00.png": "ants", "ants/to bees/00.png": "ants", "bees/00.png": "bees", "bees/to ants/00.png": "bees"
    }  # fmt: skip
    monkeypatch.setattr(folders, "MAX_LINKS", 50)
    ring = tmp_path / "ring"
    for name in "abcdefgh":
        put(ring / name / "1.png", ord(name))
    for name in "abcdefgh":
        for other in "abcdefgh":
            (ring / name / f"to {other}").symlink_to(ring / other)
    with pytest.raises(SourceError, match=r"more than 50 links lead to .*/ring/., including .*: they seem to be"):
        listed(ring, classes_at=".")


def test_a_link_to_nowhere_and_a_pipe_cost_nothing_else(listed, photos):
    (photos / "ants" / "gone.png").symlink_to(photos / "nowhere.png")
    os.mkfifo(photos / "ants" / "pipe.png")
    found = contents(listed(photos))
    assert found.pop("ants/gone.png") is Reason.UNREADABLE
    assert sorted(found) == PATHS


def test_a_file_that_vanishes_after_listing_is_unreadable(listed, photos):
    source = listed(photos)
    (photos / "ants" / "00.png").unlink()
    assert contents(source)["ants/00.png"] is Reason.UNREADABLE


def test_a_file_too_large_to_be_an_image_is_not_read(listed, photos):
    with (photos / "ants" / "video.jpg").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # a sparse file
    assert problems(listed(photos)) == {"ants/video.jpg": Reason.TOO_LARGE}


def test_names_that_are_not_utf_8_are_spelled_out_and_still_read(listed, photos):
    folder = os.fsencode(photos / "ants")
    put(Path(os.fsdecode(folder + b"/k\xe4fer.png")), drawn(9))
    source = listed(photos)
    assert contents(source)[r"ants/k\xe4fer.png"] == drawn(9)


def test_junk_files_are_not_listed(listed, photos):
    for name in (".DS_Store", "ants/.DS_Store", "__MACOSX/ants/._00.png", ".cache/ants/1.png", "ants/Thumbs.db"):
        put(photos / name, b"x")
    assert [item.path for item in listed(photos).items] == PATHS


def test_split_folders_give_the_split_and_a_note(listed, tmp_path):
    for number, split in enumerate(("train", "val")):
        put_classes(tmp_path / "photos" / split, {"ants": 1}, number)
    source = listed(tmp_path / "photos")
    assert splits(source) == {"train/ants/00.png": ("train", "val"), "val/ants/00.png": ("test",)}
    assert source.notes == ["no test folder: val becomes the test split, and validation is drawn from train"]


def test_a_folder_that_is_not_there_is_unreachable(listed, tmp_path):
    with pytest.raises(Unreachable, match=r"ingest.sources: .*/photos does not exist. Expected a folder"):
        listed(tmp_path / "photos")


def test_a_file_that_is_no_archive_is_an_error_that_says_what_would_be(listed, tmp_path):
    put(tmp_path / "photos.rar", b"Rar!")
    with pytest.raises(SourceError, match=r"photos.rar is a file; expected a folder, or a file ending in .zip, .tar"):
        listed(tmp_path / "photos.rar")


# Archives


def zipped(path, members: dict[str, bytes], **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def tarred(path, members: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, f"w:{path.suffix[1:] if path.suffix in ('.gz', '.bz2', '.xz') else ''}") as archive:
        for name, data in members.items():
            add_to_tar(archive, name, data)
    return path


def add_to_tar(archive: tarfile.TarFile, name: str, data: bytes = b"", **attributes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in attributes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


def archived(path, members: dict[str, bytes]):
    return (zipped if path.suffix == ".zip" else tarred)(path, members)


ARCHIVES = ("photos.zip", "photos.tar", "photos.tar.gz", "photos.tgz", "photos.tar.bz2", "photos.tar.xz", "PHOTOS.ZIP")


@pytest.mark.parametrize("name", [*ARCHIVES[:3], *ARCHIVES[4:6]])
def test_an_archive_of_class_folders_is_a_source(listed, tmp_path, name):
    archive = archived(tmp_path / name, {path: drawn(number) for number, path in enumerate(PATHS)})
    source = listed(archive)
    assert labels(source) == {path: path.split("/")[0] for path in PATHS}
    assert contents(source) == {path: drawn(number) for number, path in enumerate(PATHS)}
    assert contents(source, {"ants/01.png"}) == {"ants/01.png": drawn(1)}


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tar.xz"])
def test_an_archive_of_split_folders_below_a_shared_one_gives_the_split(listed, tmp_path, name):
    members = {f"photos-1.0/{split}/ants/1.png": drawn(n) for n, split in enumerate(("train", "val", "test"))}
    source = listed(archived(tmp_path / name, members | {"photos-1.0/README": b"Hello."}))
    assert splits(source) == {f"photos-1.0/{split}/ants/1.png": (split,) for split in ("test", "train", "val")}
    assert source.notes == ["train, val and test as defined by the folders"]


def test_a_tar_of_the_folder_it_was_made_in_has_the_same_paths(listed, tmp_path, photos):
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(photos, ".")
    source = listed(tmp_path / "photos.tar")
    assert labels(source) == {path: path.split("/")[0] for path in PATHS}
    assert contents(source) == contents(listed(photos))


def test_a_zip_with_backslashes_is_understood(listed, tmp_path):
    source = listed(zipped(tmp_path / "photos.zip", {"ants\\1.png": drawn(1), "ants\\": b"", "bees\\2.png": drawn(2)}))
    assert contents(source) == {"ants/1.png": drawn(1), "bees/2.png": drawn(2)}


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar.gz"])
def test_members_that_point_outside_are_rejected_and_the_rest_is_taken_in(listed, tmp_path, name):
    unsafe = ["../evil.png", "ants/../../evil.png", "/etc/evil.png", "C:/evil.png"]
    members = {path: drawn(1) for path in unsafe} | {"ants/1.png": drawn(2), "__MACOSX/ants/._1.png": b"x"}
    source = listed(archived(tmp_path / name, members))
    assert problems(source) == dict.fromkeys(unsafe, Reason.UNSAFE_PATH)
    assert contents(source) == {"ants/1.png": drawn(2)}
    assert [item.path for item in source.items] == sorted([*unsafe, "ants/1.png"])


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz"])
def test_an_empty_folder_in_an_archive_is_a_class_of_no_image(listed, tmp_path, name):
    folder = put_classes(tmp_path / "photos", CLASSES)
    (folder / "wasps").mkdir()
    (folder / "ants" / "deep").mkdir()
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder))
    else:
        with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
            archive.add(folder, ".")
    assert listed(tmp_path / name).empty == listed(folder).empty == ("wasps",)
    assert labels(listed(tmp_path / name)) == labels(listed(folder))


def test_links_and_devices_in_a_tar_are_rejected(listed, tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        add_to_tar(archive, "ants/1.png", drawn(1))
        add_to_tar(archive, "ants/soft.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add_to_tar(archive, "ants/hard.png", type=tarfile.LNKTYPE, linkname="ants/1.png")
        add_to_tar(archive, "ants/device.png", type=tarfile.CHRTYPE)
        add_to_tar(archive, "ants/pipe.png", type=tarfile.FIFOTYPE)
    source = listed(tmp_path / "photos.tar")
    assert set(problems(source).values()) == {Reason.UNSAFE_PATH}
    assert len(problems(source)) == 4
    assert contents(source) == {"ants/1.png": drawn(1)}


def test_links_in_a_zip_are_rejected(listed, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("ants/1.png", drawn(1))
        link = zipfile.ZipInfo("ants/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    assert problems(listed(tmp_path / "photos.zip")) == {"ants/link.png": Reason.UNSAFE_PATH}


def test_a_zip_member_with_a_wrong_checksum_is_one_files_fault(listed, tmp_path):
    archive = zipped(tmp_path / "photos.zip", {"ants/1.png": drawn(1), "ants/2.png": drawn(2)})
    data = bytearray(archive.read_bytes())
    data[100] ^= 1
    archive.write_bytes(data)
    assert contents(listed(archive)) == {"ants/1.png": Reason.UNDECODABLE, "ants/2.png": drawn(2)}


def test_a_member_that_unpacks_to_gigabytes_is_refused_by_its_header(listed, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ants/1.png", drawn(1))
        with archive.open("ants/bomb.png", "w", force_zip64=True) as member:
            for _ in range(MAX_FILE_BYTES // 2**24 + 1):
                member.write(bytes(2**24))
    assert problems(listed(tmp_path / "photos.zip")) == {"ants/bomb.png": Reason.TOO_LARGE}


def test_of_two_zip_members_with_one_name_the_later_counts(listed, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("ants/1.png", drawn(1))
        archive.writestr("ants/1.png", drawn(2))
    assert contents(listed(tmp_path / "photos.zip")) == {"ants/1.png": drawn(2)}


def test_names_in_a_tar_that_are_not_utf_8_are_spelled_out_and_still_read(listed, tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        add_to_tar(archive, "ants/käfer.png", drawn(1))
    assert contents(listed(tmp_path / "photos.tar")) == {r"ants/k\xe4fer.png": drawn(1)}


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tar.xz"])
@pytest.mark.parametrize("content", [b"", b"no archive at all", bytes(range(256)) * 40])
def test_what_is_no_archive_is_an_error(listed, tmp_path, name, content):
    put(tmp_path / name, content)
    with pytest.raises(SourceError, match=f"{name} is not a readable archive") as error:
        listed(tmp_path / name)
    assert not isinstance(error.value, Unreachable)


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tar.bz2", "photos.tar.xz"])
def test_an_archive_that_lacks_its_end_is_an_error_wherever_it_was_cut(listed, tmp_path, name):
    archive = archived(tmp_path / name, {f"ants/{number}.png": drawn(number) for number in range(4)})
    whole = archive.read_bytes()
    header_cut = 512 + -(-len(drawn(0)) // 512) * 512
    for cut in {1, 3, header_cut, header_cut + 100, len(whole) // 2, *range(1, len(whole), len(whole) // 15)}:
        archive.write_bytes(whole[:cut])
        try:
            source = listed(archive)
        except SourceError as error:
            assert "is not a readable archive" in str(error)
        else:  # only padding is missing
            assert len(source.items) == 4
            assert cut > 0.6 * len(whole)


@pytest.mark.parametrize("name", ["photos.tar", "photos.zip"])
def test_an_archive_with_damage_anywhere_is_an_error_or_costs_the_files_it_hit(listed, tmp_path, name):
    archive = archived(tmp_path / name, {f"ants/{number}.png": drawn(number) for number in range(4)})
    whole = archive.read_bytes()
    random = np.random.default_rng(0)
    for at in random.integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[at : at + 8] = random.bytes(8)
        archive.write_bytes(damaged)
        try:
            contents(listed(archive))
        except SourceError as error:
            assert name in str(error)


def test_an_archive_is_listed_from_memory_while_it_stays_the_same(listed, tmp_path):
    archive = tarred(tmp_path / "photos.tar.gz", {path: drawn(1) for path in PATHS})
    about = archive.stat()
    before = listed(archive).items
    archive.write_bytes(b"x" * about.st_size)  # other content with the same size and time: the listing is cached
    os.utime(archive, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert listed(archive).items == before
    os.utime(archive)
    with pytest.raises(SourceError):
        listed(archive)


def test_only_the_members_that_changed_have_another_stamp_in_a_new_zip(listed, tmp_path):
    def stamps(**changes) -> dict[str, str]:
        members = {path: drawn(changes.get(path, number)) for number, path in enumerate(PATHS)}
        return {item.path: item.stamp for item in listed(zipped(tmp_path / "photos.zip", members)).items}

    before, after = stamps(), stamps(**{"ants/00.png": 99})
    assert {path for path in PATHS if before[path] != after[path]} == {"ants/00.png"}


# Manifests


def manifest(path, text: str):
    return put(path, text.encode())


def test_a_csv_names_paths_and_labels(listed, tmp_path, photos):
    manifest(tmp_path / "list.csv", "path,label\nphotos/ants/00.png,007\nphotos/bees/00.png,true\n")
    source = listed(tmp_path / "list.csv")
    assert labels(source) == {"photos/ants/00.png": "007", "photos/bees/00.png": "true"}
    assert {item.domain for item in source.items} == {"garden"}
    assert contents(source) == {"photos/ants/00.png": drawn(0), "photos/bees/00.png": drawn(3)}


def test_a_tsv_is_separated_by_tabs(listed, tmp_path, photos):
    manifest(photos / "list.TSV", "label\tpath\nants, red\tants/00.png\n")
    assert labels(listed(photos / "list.TSV")) == {"ants/00.png": "ants, red"}


def test_domain_and_split_columns_count_where_they_are_filled(listed, photos):
    rows = "ants/00.png,ants,,train\nants/01.png,ants,meadow,Valid\nants/02.png,ants,meadow,\n"
    source = listed(manifest(photos / "list.csv", "path,label,domain,split\n" + rows))
    assert [(item.domain, item.splits) for item in source.items] == [
        ("garden", ("train",)),
        ("meadow", ("val",)),
        ("meadow", SPLITS),
    ]
    assert source.notes == []


def test_rows_without_a_test_split_are_read_as_folders_without_one(listed, photos):
    rows = "ants/00.png,ants,train\nbees/00.png,bees,val\n"
    source = listed(manifest(photos / "list.csv", "path,label,split\n" + rows))
    assert list(splits(source).values()) == [("train", "val"), ("test",)]
    assert source.notes == ["no test row: val becomes the test split, and validation is drawn from train"]


def test_a_parquet_manifest_may_have_labels_of_any_type(listed, photos):
    for labels_, expected in (
        (pa.array([7, 12]), ["7", "12"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array(["a", None]), ["a"]),
    ):
        table = pa.table({"path": ["ants/00.png", "bees/00.png"], "label": labels_, "other": [b"x", b"y"]})
        pq.write_table(table, photos / "list.parquet")
        assert list(labels(listed(photos / "list.parquet")).values()) == expected


def test_a_missing_column_is_an_error_that_names_what_is_there(listed, photos):
    for name in ("list.csv", "list.parquet"):
        if name.endswith("csv"):
            manifest(photos / name, "file,label\nants/00.png,ants\n")
        else:
            pq.write_table(pa.table({"file": ["a"], "label": ["b"]}), photos / name)
        with pytest.raises(SourceError, match=rf"{name}: no column 'path'; it has file, label"):
            listed(photos / name)


def test_a_wrong_split_is_an_error_that_names_the_row(listed, photos):
    manifest(photos / "list.csv", "path,label,split\nants/00.png,ants,both\n")
    with pytest.raises(SourceError, match=r"split of ants/00.png is 'both'; expected train, val or test"):
        listed(photos / "list.csv")


@pytest.mark.parametrize(
    "content", [b"", b"path,label\nonly one\n", b"path,label\n\xff\xfe,x\n"], ids=["empty", "ragged", "latin"]
)
def test_a_broken_manifest_is_an_error(listed, photos, content):
    put(photos / "list.csv", content)
    with pytest.raises(SourceError, match=r"list.csv: not a readable manifest"):
        listed(photos / "list.csv")


def test_a_broken_parquet_file_is_an_error(listed, photos):
    put(photos / "list.parquet", b"PAR1 not really")
    with pytest.raises(SourceError, match=r"list.parquet: not a readable manifest"):
        listed(photos / "list.parquet")


def test_a_row_without_a_file_or_without_a_label_is_rejected(listed, photos):
    manifest(photos / "list.csv", "path,label\nants/00.png,ants\nants/gone.png,ants\nbees/00.png,\nants,ants\n,x\n")
    assert problems(listed(photos / "list.csv")) == {
        "ants": Reason.UNREADABLE,
        "ants/gone.png": Reason.UNREADABLE,
        "bees/00.png": Reason.NO_LABEL,
    }


WRONG_TABLES = {
    "a column twice": (b"path,label,label\na.png,a,b\n", "the column 'label' appears twice"),
    "no rows": (b"path,label\n", "lists no images"),
    "rows without paths": (b"path,label\n,a\n,b\n", "lists no images"),
    "nothing": (b"", "not a readable manifest"),
    "UTF-16": ("path,label\na.png,a\n".encode("utf-16"), "not a readable manifest|no column"),
    "semicolons": (b"path;label\na.png;a\n", "no column 'path'; it has path;label"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_TABLES)
def test_a_table_that_is_there_and_wrong_is_an_error_and_never_taken_for_away(listed, photos, name):
    content, said = WRONG_TABLES[name]
    with pytest.raises(SourceError, match=said) as error:
        listed(put(photos / "list.csv", content))
    assert not isinstance(error.value, Unreachable)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"path": ["a.png"], "label": [["a"]]}, r"the column 'label' holds list<.*expected text"),
        ({"path": ["a.png"], "label": [{"x": 1}]}, r"the column 'label' holds struct<"),
        ({"path": [["a.png"]], "label": ["a"]}, r"the column 'path' holds list<"),
        ({"path": pa.array([], pa.string()), "label": pa.array([], pa.string())}, "lists no images"),
        ({"file": ["a.png"]}, "no column 'path'; it has file"),
    ],
)
def test_a_parquet_table_of_other_things_is_an_error_and_never_taken_for_away(listed, photos, columns, said):
    pq.write_table(pa.table(columns), photos / "list.parquet")
    whole = (photos / "list.parquet").read_bytes()
    with pytest.raises(SourceError, match=said) as error:
        listed(photos / "list.parquet")
    assert not isinstance(error.value, Unreachable)
    for cut in (1, len(whole) // 2, len(whole) - 1):
        with pytest.raises(SourceError, match="not a readable manifest") as error:
            listed(put(photos / "list.parquet", whole[:cut]))
        assert not isinstance(error.value, Unreachable)


@pytest.mark.parametrize("name", ["list.csv", "list.parquet", "photos.zip", "photos.tar.gz"])
def test_a_folder_that_is_named_as_a_file_is_an_error_and_never_taken_for_away(listed, tmp_path, name):
    put_classes(tmp_path / name, CLASSES)
    with pytest.raises(SourceError, match=f"{name} is a folder, but is named like a") as error:
        listed(tmp_path / name)
    assert not isinstance(error.value, Unreachable)


def answered(status: int) -> dict:
    """Return a response as botocore records it."""
    return {"ResponseMetadata": {"HTTPStatusCode": status}}


def of_driver(module: str, name: str, **said) -> Exception:
    """Return an error as the driver of a store raises it."""
    error = type(name, (Exception,), {"__module__": module})("refused")
    vars(error).update(said)
    return error


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (FileNotFoundError(2, "gone"), True), (ConnectionResetError(), True), (TimeoutError(), True),
        (OSError(5, "input/output error"), True), (OSError(116, "stale file handle"), True),
        (OSError(107, "transport endpoint is not connected"), True), (PermissionError(13, "denied"), False),
        (OSError(22, "invalid argument"), False), (ValueError("x"), False), (KeyError("label"), False),
        (gzip.BadGzipFile("not gzipped"), False), (NotADirectoryError(20, "no folder"), False),
        (pa.ArrowNotImplementedError("cast"), False), (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), False),
        (of_driver("botocore.exceptions", "EndpointConnectionError"), True), (OSError(16, "server is busy"), True),
        (of_driver("botocore.exceptions", "NoCredentialsError"), False),
        (of_driver("botocore.exceptions", "ClientError", response=answered(503)), True),
        (of_driver("botocore.exceptions", "ClientError", response=answered(400)), False),
        (of_driver("aiohttp.client_exceptions", "ClientResponseError", status=429), True),
        (of_driver("aiohttp.client_exceptions", "ClientResponseError", status=401), False),
        (of_driver("gcsfs.retry", "HttpError", code="403"), False),
        (of_driver("gcsfs.retry", "HttpError", code=502), True),
        (of_driver("google.auth.exceptions", "TransportError"), True),
        (of_driver("google.auth.exceptions", "DefaultCredentialsError"), False),
        (of_driver("azure.core.exceptions", "ClientAuthenticationError", status_code=401), False),
        (of_driver("azure.core.exceptions", "ServiceRequestError"), True),
        (of_driver("paramiko.ssh_exception", "AuthenticationException"), False),
        (of_driver("paramiko.ssh_exception", "SSHException"), True), (socket.gaierror(-2, "unknown host"), True),
    ],
)  # fmt: skip
def test_only_a_missing_path_or_a_network_is_taken_for_away(listed, photos, monkeypatch, error, is_away):
    def fails(*_, **__):
        raise error

    manifest(photos / "list.csv", "path,label\nants/00.png,a\n")
    monkeypatch.setattr(sources, "_read_table", fails)
    with pytest.raises(SourceError) as raised:
        listed(photos / "list.csv")
    assert isinstance(raised.value, Unreachable) == is_away
    assert "cannot be reached" in str(raised.value) if is_away else "exists but cannot be read" in str(raised.value)


def test_paths_with_backslashes_are_read_with_slashes_where_that_is_what_is_there(listed, photos):
    put(photos / "odd\\name.png", 70)
    rows = "ants\\00.png,a\n.\\bees\\01.png,b\nodd\\name.png,c\nants\\gone.png,a\n"
    source = listed(manifest(photos / "list.csv", "path,label\n" + rows))
    assert labels(source) == {"ants/00.png": "a", "bees/01.png": "b", "odd\\name.png": "c"}
    assert problems(source) == {"ants\\gone.png": Reason.UNREADABLE}
    assert source.notes == ["2 paths have backslashes, read as slashes (e.g. ants\\00.png)"]


def test_splits_of_rows_may_have_other_names_and_labels_have_one_spelling(listed, photos):
    rows = 'ants/00.png," ants",Training\nants/01.png,ants ,dev\nants/02.png,"fire  ants",hold-out\n'
    source = listed(manifest(photos / "list.csv", "path,label,split\n" + rows))
    assert [(item.label, item.splits) for item in source.items] == [
        ("ants", ("train",)), ("ants", ("val",)), ("fire ants", ("test",))
    ]  # fmt: skip


def test_no_absolute_path_gets_into_the_data(listed, tmp_path, photos):
    elsewhere = put(tmp_path / "elsewhere" / "1.png", 50)
    rows = [photos / "ants" / "00.png", elsewhere, f"file://{photos}/bees/00.png", "./bees/01.png"]
    manifest(photos / "list.csv", "path,label\n" + "".join(f"{row},x\n" for row in rows))
    source = listed(photos / "list.csv")
    assert contents(source) == {
        "../elsewhere/1.png": drawn(50),
        "ants/00.png": drawn(0),
        "bees/00.png": drawn(3),
        "bees/01.png": drawn(4),
    }


# Samples and torchvision datasets


def test_a_torchvision_set_that_is_laid_out_already_is_listed_like_a_folder(listed, tmp_path):
    put_classes(tmp_path / "scratch" / "torchvision" / "EuroSAT", CLASSES)
    assert labels(listed("torchvision:EuroSAT")) == {path: path.split("/")[0] for path in PATHS}


def test_an_unknown_sample_or_set_is_an_error_that_names_the_nearest(listed):
    with pytest.raises(SourceError, match=r"Did you mean sample:digits\?"):
        listed("sample:digit")
    with pytest.raises(SourceError, match=r"Did you mean Flowers102"):
        listed("torchvision:Flowers")


# Other stores


def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path):
    path = put(tmp_path / "params.yaml", b"ingest: {sources: [{path: 'sftp://me:s3cret@host/photos', domain: x}]}")
    with pytest.raises(ParamsError, match=r"ingest.sources\[0\].path: a password in a URL would be recorded") as error:
        params_file.load(path)
    assert "s3cret" not in str(error.value)


def test_file_urls_are_folders_of_this_machine(listed, photos):
    assert contents(listed(f"file://{photos}")) == contents(listed(photos))


@pytest.fixture
def memory():
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()


def test_a_store_of_another_kind_holds_folders_archives_and_manifests(listed, memory, tmp_path):
    for number, path in enumerate(PATHS):
        memory.pipe(f"/bucket/photos/{path}", drawn(number))
    expected = {path: drawn(number) for number, path in enumerate(PATHS)}
    for name in ("photos.zip", "photos.tar.gz"):
        memory.pipe(f"/bucket/{name}", archived(tmp_path / name, expected).read_bytes())
        assert contents(listed(f"memory://bucket/{name}")) == expected
    assert contents(listed("memory://bucket/photos")) == expected
    rows = "".join(f"../photos/{path},x\n" for path in PATHS[:2]) + f"memory://bucket/photos/{PATHS[2]},x\ngone.png,x\n"
    memory.pipe("/bucket/lists/list.csv", b"path,label\n" + rows.encode())
    source = listed("memory://bucket/lists/list.csv")
    assert contents(source) == {f"../photos/{path}": expected[path] for path in PATHS[:3]}
    assert problems(source) == {"gone.png": Reason.UNREADABLE}


def test_a_file_rewritten_in_a_store_has_another_stamp(listed, memory):
    memory.pipe("/bucket/photos/ants/1.png", b"12345")
    before = listed("memory://bucket/photos").items[0].stamp
    memory.pipe("/bucket/photos/ants/1.png", b"54321")
    assert listed("memory://bucket/photos").items[0].stamp != before


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="the driver is installed")
def test_a_missing_driver_is_an_error_that_names_the_extra(listed):
    with pytest.raises(
        SourceError, match=r"gs://bucket/photos: its driver is not installed: pip install .* '\.\[gs\]'"
    ):
        listed("gs://bucket/photos")


def test_an_unknown_protocol_is_an_error(listed):
    with pytest.raises(SourceError, match=r"gopher://x/photos: expected a path or an fsspec URL"):
        listed("gopher://x/photos")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        with suppress(ConnectionError):  # a client that only checks for existence hangs up
            super().copyfile(source, outputfile)


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # pending connections


@contextmanager
def web(folder: Path, handler: type[SimpleHTTPRequestHandler] = Quiet) -> Iterator[str]:
    """Serve a folder on the loopback interface without support for byte ranges; yields its URL."""
    server = Server(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def served(tmp_path):
    """Serve a folder; yields the folder and its URL."""
    with web(tmp_path / "served") as url:
        yield tmp_path / "served", url


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
def test_a_web_server_holds_folders_archives_and_manifests(listed, served):
    folder, url = served
    expected = {f"pink ants/{number}.png": drawn(number) for number in range(3)}
    for path, data in expected.items():
        put(folder / "photos" / path, data)
    assert contents(listed(f"{url}/photos")) == expected
    for name in ("photos.zip", "photos.tar.gz"):
        assert contents(listed(f"{url}/{archived(folder / name, expected).name}")) == expected
    manifest(folder / "list.csv", "path,label\nphotos/pink%20ants/0.png,x\n")
    assert list(contents(listed(f"{url}/list.csv")).values()) == [drawn(0)]


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
def test_a_web_server_that_does_not_answer_is_unreachable(listed, served):
    _, url = served
    with pytest.raises(Unreachable, match="does not exist"):
        listed(f"{url}/photos")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        listed("http://127.0.0.1:9/photos")


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "Bad Request"),
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (404, "does not exist"),
        (503, "cannot be reached"),
    ],
)
def test_a_web_server_that_refuses_is_an_error_and_one_that_fails_is_away(listed, tmp_path, status, said):
    class Refusing(Quiet):
        def send_head(self):
            self.send_error(status)

    (tmp_path / "web").mkdir()
    with web(tmp_path / "web", Refusing) as url:
        for name in ("photos", "photos.zip", "list.csv"):
            with pytest.raises(SourceError, match=said) as raised:
                listed(f"{url}/{name}")
            assert isinstance(raised.value, Unreachable) == (status in (404, 503))


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
def test_a_store_is_asked_for_many_files_at_once_and_not_for_all(listed, tmp_path):
    many, asked = 320, []
    together = threading.Barrier(32, timeout=20)

    class Patient(Quiet):
        """Answers only once this many requests are waiting."""

        def send_head(self):
            if self.path.endswith(".png"):
                asked.append(self.path)
                together.wait()
            return super().send_head()

    for number in range(many):
        put(tmp_path / "web" / f"{number}.png", b"%d" % number)
    manifest(tmp_path / "web" / "list.csv", "path,label\n" + "".join(f"{number}.png,x\n" for number in range(many)))
    with web(tmp_path / "web", Patient) as url:
        source = listed(f"{url}/list.csv")
        (tmp_path / "web" / "99.png").unlink()
        asked.clear()
        reading = source.read({item.path for item in source.items})
        first = next(reading)
        assert len(asked) <= 4 * 2 * 16
        found = {item.path: load for item, load in chain([first], reading)}
    with pytest.raises(Rejected, match="unreadable"):
        found.pop("99.png")()
    assert {path: load() for path, load in found.items()} == {
        f"{number}.png": b"%d" % number for number in range(many) if number != 99
    }


@pytest.mark.parametrize("name", ["a[1].png", "a*.png", "a?.png", "{b,c}.png"])
def test_a_name_in_a_store_is_no_pattern(listed, name):
    store = fsspec.filesystem("memory")
    for path in ("a1.png", "ab.png", "b.png", name):
        store.pipe_file(f"/patterns/x/{path}", path.encode())
    try:
        assert contents(listed("memory://patterns"))[f"x/{name}"] == name.encode()
    finally:
        store.rm("/patterns", recursive=True)


# Limits


def tar_with(sizes: dict[str, bytes], compressed: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compressed}") as archive:
        for name, content in sizes.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return file.getvalue()


def header_that_claims(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a header with its size in base-256 encoding, which allows up to 2**63."""
    header = bytearray(tarfile.TarInfo("ants/huge.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=["tar", "gz", "bz2", "xz"])
@pytest.mark.parametrize(
    "last",
    [
        header_that_claims(2**63),
        header_that_claims(2**40),
        header_that_claims(2**87),
        header_that_claims(2**33, tarfile.XHDTYPE),
        header_that_claims(2**33, tarfile.GNUTYPE_LONGNAME),
    ],
)
def test_a_tar_whose_header_claims_what_is_not_there_is_an_error_at_once(listed, tmp_path, pack, last):
    images = {f"{'ab'[number % 2]}/{number}.png": encoded(picture(number)) for number in range(4)}
    content = tar_with(images).rstrip(b"\0")
    content = content.ljust(-(-len(content) // 512) * 512, b"\0") + last + bytes(1024)
    name = {bytes: "a.tar", gzip.compress: "a.tar.gz", bz2.compress: "a.tar.bz2", lzma.compress: "a.tar.xz"}[pack]
    put(tmp_path / name, pack(content))
    with pytest.raises(SourceError, match=r"is not a readable archive"):
        listed(tmp_path / name)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_an_archive_that_unpacks_to_hundreds_of_times_its_size_is_refused(listed, tmp_path, name, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 2**24)
    members = {f"ants/{number}.bmp": bytes(2**21) for number in range(20)}
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    else:
        put(tmp_path / name, tar_with(members, "gz"))
    with pytest.raises(SourceError, match=r"its [\d,]+ bytes unpack to [\d,]+ or more"):
        listed(tmp_path / name)


@pytest.mark.timeout(60)
def test_a_file_that_has_become_a_pipe_is_unreadable_and_nobody_waits_for_it(listed, photos):
    source = listed(photos)
    (photos / "ants/00.png").unlink()
    os.mkfifo(photos / "ants/00.png")
    (photos / "ants/01.png").unlink()
    (photos / "ants/01.png").symlink_to("/dev/zero")
    found = {}
    for item, load in source.read({"ants/00.png", "ants/01.png", "ants/02.png"}):
        try:
            found[item.path] = len(load())
        except Rejected as rejected:
            found[item.path] = rejected.reason
    assert found.pop("ants/02.png") > 100
    assert found == {"ants/00.png": Reason.UNREADABLE, "ants/01.png": Reason.UNREADABLE}


def test_no_more_is_read_of_a_file_that_grows_than_an_image_may_have(tmp_path, monkeypatch):
    put(tmp_path / "a", bytes(1000))
    assert len(files.read(tmp_path / "a", 500)) == 501
    with pytest.raises(OSError, match="not a regular file"):
        files.read(tmp_path, 500)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "table",
    [
        pa.table({"path": pa.repeat("ants/00.png", 20_000_000), "label": pa.repeat("ants", 20_000_000)}),
        pa.table({"path": pa.repeat("a" * 2_000_000, 200).dictionary_encode(), "label": pa.repeat("ants", 200)}),
    ],
    ids=["millions of rows", "names of megabytes"],
)
def test_a_table_that_unpacks_to_hundreds_of_times_its_size_is_refused(listed, photos, table):
    pq.write_table(table, photos / "labels.parquet", compression="zstd")
    assert (photos / "labels.parquet").stat().st_size < 2_000_000
    with pytest.raises(SourceError, match=r"labels.parquet: not a readable manifest: .* (rows|or more)"):
        listed(photos / "labels.parquet")


def test_a_table_larger_than_any_is_refused_unread(listed, photos):
    with (photos / "labels.csv").open("w") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(SourceError, match=r"labels.csv holds [\d,]+ bytes; expected a table of at most 536,870,912"):
        listed(photos / "labels.csv")


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet", "photos.zip", "photos.tar.gz"])
@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_a_table_or_an_archive_is_refused(listed, tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(SourceError, match="is a pipe or a device; expected a file"):
        listed(tmp_path / name)


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
def test_a_file_of_a_web_server_is_read_no_further_than_it_may_be_large(listed, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MAX_FILE_BYTES", 2**22)
    sent = []

    class Endless(Quiet):
        """Sends files without a content length; one file never ends."""

        def do_GET(self):
            if not self.path.endswith("x.png"):
                return super().do_GET()
            self.send_response(200)
            self.end_headers()
            with suppress(ConnectionError):
                while len(sent) < 4000:
                    self.wfile.write(bytes(2**18))
                    sent.append(2**18)
            return None

    for name in ("a/endx.png", "a/1.png", "b/2.png"):
        put(tmp_path / "web/photos" / name, drawn(1))
    with web(tmp_path / "web", Endless) as url:
        source = listed(f"{url}/photos")
        found = {item.path: load() for item, load in source.read({item.path for item in source.items})}
    assert found["a/1.png"] == found["b/2.png"] == drawn(1)
    assert len(found["a/endx.png"]) == 2**22 + 1  # which is too large
    assert sum(sent) < 2**27


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
def test_a_table_of_a_web_server_that_says_no_size_is_read_to_its_end(listed, tmp_path):
    class Slowly(Quiet):
        def do_GET(self):
            if not self.path.endswith(".csv"):
                return super().do_GET()
            self.send_response(200)
            self.end_headers()
            for line in (tmp_path / "web/list.csv").read_bytes().splitlines(keepends=True):
                self.wfile.write(line)
                self.wfile.flush()
                time.sleep(0.01)
            return None

        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

    put(tmp_path / "web/1.png", drawn(1))
    manifest(tmp_path / "web/list.csv", "path,label\n" + "".join(f"1.png?{number},x\n" for number in range(50)))
    with web(tmp_path / "web", Slowly) as url:
        assert len(listed(f"{url}/list.csv").items) == 50


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar.gz", "list.csv", "list.tsv"])
def test_what_lists_more_files_than_a_data_set_has_is_refused_before_it_takes_memory(
    listed, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 20)
    monkeypatch.setattr(manifests, "MAX_ROWS", 20)

    def with_files(count: int) -> Path:
        images = {f"{'ab'[number % 2]}/{number}.png": drawn(number) for number in range(count)}
        if name.startswith("photos"):
            return archived(tmp_path / name, images)
        for path, data in images.items():
            put(tmp_path / path, data)
        rows = [("path", "label"), *((path, path[0]) for path in images)]
        tab = "\t" if name.endswith("tsv") else ","
        return manifest(tmp_path / name, "".join(f"{tab.join(row)}\n" for row in rows))

    assert len(listed(with_files(20)).items) == 20
    with pytest.raises(SourceError, match=r"more than 20 (members|rows)"):
        listed(with_files(23))


def test_an_index_of_a_zip_is_not_read_if_it_is_too_large(listed, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_INDEX_BYTES", 100)
    path = archived(tmp_path / "photos.zip", {f"a/{number}.png": drawn(number) for number in range(3)})
    with pytest.raises(SourceError, match=r"its index takes [0-9]+ bytes; expected at most 100"):
        listed(path)


def test_a_table_of_very_many_columns_is_refused(listed, tmp_path):
    with pytest.raises(SourceError, match="more than 10,000 columns"):
        listed(manifest(tmp_path / "list.csv", "path,label" + ",x" * 20_000 + "\n"))
