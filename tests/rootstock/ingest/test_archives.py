"""Zip and tar archives as sources: their members are listed and read without unpacking, unsafe members are rejected,
and a damaged or oversized archive is an error."""

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile

import aiohttp
import fsspec
import numpy as np
import pytest

from rootstock.images.inspection import MAX_FILE_BYTES, Reason
from rootstock.ingest import archive_limits, item_rows, zip_parts
from rootstock.ingest.folders import stamp_of
from rootstock.ingest.sources import Unreachable
from rootstock.system.errors import SourceError
from tests.archive_files import add_to_tar, archived, tar_bytes, zip_bytes
from tests.images import encoded, picture, put, put_classes
from tests.listing import CLASSES, PATHS, contents, drawn, labels, problems, splits


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tar.bz2", "photos.tar.xz"])
def test_an_archive_of_class_folders_is_a_source(listed, tmp_path, name):
    archive = archived(tmp_path / name, {path: drawn(number) for number, path in enumerate(PATHS)})
    source = listed(archive)
    assert labels(source) == {path: path.split("/")[0] for path in PATHS}
    assert contents(source) == {path: drawn(number) for number, path in enumerate(PATHS)}
    assert contents(source, {"ants/01.png"}) == {"ants/01.png": drawn(1)}


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tar.xz"])
def test_split_folders_of_an_archive_determine_the_splits_below_a_common_folder_too(listed, tmp_path, name):
    members = {f"photos-1.0/{split}/ants/1.png": drawn(n) for n, split in enumerate(("train", "val", "test"))}
    source = listed(archived(tmp_path / name, members | {"photos-1.0/README": b"Hello."}))
    assert splits(source) == {f"photos-1.0/{split}/ants/1.png": (split,) for split in ("test", "train", "val")}
    assert source.notes == ["train, val and test as defined by the folders"]


def test_a_tar_made_inside_a_folder_lists_the_same_paths_as_the_folder(listed, tmp_path, five_photos):
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(five_photos, ".")
    source = listed(tmp_path / "photos.tar")
    assert labels(source) == {path: path.split("/")[0] for path in PATHS}
    assert contents(source) == contents(listed(five_photos))


def test_backslashes_in_the_names_of_a_zip_are_separators(listed, tmp_path):
    source = listed(
        archived(tmp_path / "photos.zip", {"ants\\1.png": drawn(1), "ants\\": b"", "bees\\2.png": drawn(2)})
    )
    assert contents(source) == {"ants/1.png": drawn(1), "bees/2.png": drawn(2)}


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar.gz"])
def test_members_that_point_outside_the_archive_are_rejected_and_the_others_listed(listed, tmp_path, name):
    unsafe = ["../evil.png", "ants/../../evil.png", "/etc/evil.png", "C:/evil.png"]
    members = {path: drawn(1) for path in unsafe} | {"ants/1.png": drawn(2), "__MACOSX/ants/._1.png": b"x"}
    source = listed(archived(tmp_path / name, members))
    assert problems(source) == dict.fromkeys(unsafe, Reason.UNSAFE_PATH)
    assert contents(source) == {"ants/1.png": drawn(2)}
    assert [item.path for item in source.items] == sorted([*unsafe, "ants/1.png"])


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz"])
def test_an_empty_folder_in_an_archive_is_an_empty_class(listed, tmp_path, name):
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


def test_of_two_zip_members_with_the_same_name_the_later_one_counts(listed, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("ants/1.png", drawn(1))
        archive.writestr("ants/1.png", drawn(2))
    assert contents(listed(tmp_path / "photos.zip")) == {"ants/1.png": drawn(2)}


def test_of_two_tar_members_with_the_same_name_the_first_one_counts(listed, tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        add_to_tar(archive, "ants/1.png", drawn(1))
        add_to_tar(archive, "ants/1.png", drawn(2) * 2)
    source = listed(tmp_path / "photos.tar")
    assert contents(source) == {"ants/1.png": drawn(1)} and source.items[0].size == len(drawn(1))


def test_members_whose_paths_share_a_hash_are_told_apart(listed, tmp_path, monkeypatch):
    monkeypatch.setattr(item_rows, "hash", len, raising=False)
    source = listed(archived(tmp_path / "photos.tar", {path: drawn(number) for number, path in enumerate(PATHS)}))
    assert contents(source) == {path: drawn(number) for number, path in enumerate(PATHS)}
    assert contents(source, {"bees/00.png"}) == {"bees/00.png": drawn(3)}


def test_tar_members_with_names_that_are_not_utf_8_are_listed_with_escapes_and_read(listed, tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        add_to_tar(archive, "ants/käfer.png", drawn(1))
    assert contents(listed(tmp_path / "photos.tar")) == {r"ants/k\xe4fer.png": drawn(1)}


def test_the_listing_of_an_unchanged_archive_is_cached(listed, tmp_path):
    archive = archived(tmp_path / "photos.tar.gz", {path: drawn(1) for path in PATHS})
    about = archive.stat()
    before = listed(archive).items
    archive.write_bytes(b"x" * about.st_size)  # other content with the same size and time: the listing is cached
    os.utime(archive, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert listed(archive).items == before
    os.utime(archive)
    with pytest.raises(SourceError):
        listed(archive)


def test_a_listing_that_an_older_version_has_cached_is_used(listed, scan, tmp_path):
    path = str(put(tmp_path / "photos.tar", b"x"))
    stamp = stamp_of(fsspec.filesystem("file").info(path))
    text = '{"ants/1.png": [7, "a"], "bees/2.png": [8, "b"], "bees/3.png": null, "wasps/": [0, ""]}'
    scan._db.execute("insert into archives values (?, ?, ?)", (path, stamp, text))
    source = listed(path)
    assert [(item.path, item.stamp) for item in source.items] == [
        ("ants/1.png", "7:a"), ("bees/2.png", "8:b"), ("bees/3.png", stamp)
    ]  # fmt: skip
    assert problems(source) == {"bees/3.png": Reason.UNSAFE_PATH} and source.empty == ("wasps",)


def test_in_a_rewritten_zip_only_changed_members_have_new_stamps(listed, tmp_path):
    def stamps(**changes) -> dict[str, str]:
        members = {path: drawn(changes.get(path, number)) for number, path in enumerate(PATHS)}
        return {item.path: item.stamp for item in listed(archived(tmp_path / "photos.zip", members)).items}

    before, after = stamps(), stamps(**{"ants/00.png": 99})
    assert {path for path in PATHS if before[path] != after[path]} == {"ants/00.png"}


def test_members_of_a_rewritten_tar_have_new_stamps_that_are_short_and_begin_with_their_size(listed, tmp_path):
    def stamps(last: int) -> dict[str, str]:
        members = {path: drawn(number) for number, path in enumerate([*PATHS[:-1], PATHS[-1] * (1 + last)])}
        return {item.path: item.stamp for item in listed(archived(tmp_path / "photos.tar", members)).items}

    before, after = stamps(0), stamps(1)
    assert all(before[path] != after[path] for path in PATHS[:-1])
    assert before[PATHS[0]].partition(":")[0] == str(len(drawn(0)))
    assert max(len(stamp) for stamp in before.values()) <= 20


# Links and damage


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


def test_a_zip_member_with_a_wrong_checksum_is_rejected_and_the_others_read(listed, tmp_path):
    archive = archived(tmp_path / "photos.zip", {"ants/1.png": drawn(1), "ants/2.png": drawn(2)})
    data = bytearray(archive.read_bytes())
    data[100] ^= 1
    archive.write_bytes(data)
    assert contents(listed(archive)) == {"ants/1.png": Reason.UNDECODABLE, "ants/2.png": drawn(2)}


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tar.xz"])
@pytest.mark.parametrize("content", [b"", b"no archive at all", bytes(range(256)) * 40])
def test_a_file_that_is_not_an_archive_is_an_error(listed, tmp_path, name, content):
    put(tmp_path / name, content)
    with pytest.raises(SourceError, match=f"{name} is not a readable archive") as error:
        listed(tmp_path / name)
    assert not isinstance(error.value, Unreachable)


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tar.bz2", "photos.tar.xz"])
def test_a_truncated_archive_is_an_error_wherever_it_was_cut(listed, tmp_path, name):
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
def test_damage_anywhere_in_an_archive_is_an_error_or_affects_only_the_damaged_members(listed, tmp_path, name):
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


# Limits


def test_a_member_that_unpacks_to_gigabytes_is_rejected_by_its_header(listed, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ants/1.png", drawn(1))
        with archive.open("ants/bomb.png", "w", force_zip64=True) as member:
            for _ in range(MAX_FILE_BYTES // 2**24 + 1):
                member.write(bytes(2**24))
    assert problems(listed(tmp_path / "photos.zip")) == {"ants/bomb.png": Reason.TOO_LARGE}


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
def test_a_tar_header_with_an_impossible_size_is_an_error_at_once(listed, tmp_path, pack, last):
    images = {f"{'ab'[number % 2]}/{number}.png": encoded(picture(number)) for number in range(4)}
    content = tar_bytes(images).rstrip(b"\0")
    content = content.ljust(-(-len(content) // 512) * 512, b"\0") + last + bytes(1024)
    name = {bytes: "a.tar", gzip.compress: "a.tar.gz", bz2.compress: "a.tar.bz2", lzma.compress: "a.tar.xz"}[pack]
    put(tmp_path / name, pack(content))
    with pytest.raises(SourceError, match=r"is not a readable archive"):
        listed(tmp_path / name)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_an_archive_that_unpacks_to_many_times_its_size_is_an_error(listed, tmp_path, name, monkeypatch):
    monkeypatch.setattr(archive_limits, "MAX_UNPACKED_BYTES", 2**24)
    members = {f"ants/{number}.bmp": bytes(2**21) for number in range(20)}
    data = zip_bytes(members, compression=zipfile.ZIP_DEFLATED) if name == "a.zip" else tar_bytes(members, "gz")
    put(tmp_path / name, data)
    with pytest.raises(SourceError, match=r"its [\d,]+ bytes unpack to [\d,]+ or more"):
        listed(tmp_path / name)


def test_a_zip_with_an_oversized_index_is_an_error(listed, tmp_path, monkeypatch):
    monkeypatch.setattr(zip_parts, "MAX_INDEX_BYTES", 100)
    path = archived(tmp_path / "photos.zip", {f"a/{number}.png": drawn(number) for number in range(3)})
    with pytest.raises(SourceError, match=r"its index takes [0-9]+ bytes; expected at most 100"):
        listed(path)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (aiohttp.ClientPayloadError("the connection was cut"), Reason.UNREADABLE),
        (aiohttp.ServerDisconnectedError(), Reason.UNREADABLE),
        (TimeoutError(), Reason.UNREADABLE),
        (MemoryError(), Reason.UNREADABLE),
        (NotImplementedError("a compression of tomorrow"), Reason.UNDECODABLE),
        (RuntimeError("a password is needed"), Reason.UNDECODABLE),
    ],
)
def test_a_member_that_could_not_be_read_this_time_is_tried_again(listed, tmp_path, monkeypatch, error, reason):
    def fails(*_: object) -> bytes:
        raise error

    source = listed(archived(tmp_path / "photos.zip", {path: drawn(number) for number, path in enumerate(PATHS)}))
    monkeypatch.setattr(zipfile.ZipExtFile, "read", fails)
    assert set(contents(source).values()) == {reason}


def test_an_archive_may_be_named_as_a_folder_and_a_table_within_one_as_a_file(listed, tmp_path):
    files = {path: drawn(number) for number, path in enumerate(PATHS)}
    archive = archived(tmp_path / "photos.zip", files | {"labels.csv": b"path,label\nants/00.png,red\n"})
    assert contents(listed(f"zip://::{archive}", classes_at=".")) == files
    assert labels(listed(f"zip://labels.csv::{archive}")) == {"ants/00.png": "red"}
    assert contents(listed(f"zip://labels.csv::{archive}")) == {"ants/00.png": drawn(0)}


def test_a_folder_that_is_named_like_an_archive_is_one_if_its_path_ends_in_a_slash(listed, tmp_path):
    put(tmp_path / "photos.zip" / "ants" / "00.png", drawn(1))
    assert contents(listed(f"{tmp_path}/photos.zip/", classes_at=".")) == {"ants/00.png": drawn(1)}
    with pytest.raises(SourceError, match="is a folder, but is named like an archive"):
        listed(tmp_path / "photos.zip")
