"""A zip in parts: the same members as zipfile reads at once, in memory that does not grow with them."""

import inspect
import io
import struct
import tracemalloc
import zipfile

import pytest
from hypothesis import given, settings, strategies as st

from rootstock.ingest import zip_members, zip_parts

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
MEMBERS = st.lists(
    st.tuples(NAMES, st.binary(max_size=60), st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
              st.binary(max_size=20)),
    max_size=30,
)  # fmt: skip
DETAILS = ("filename", "header_offset", "compress_size", "file_size", "CRC", "comment", "external_attr", "flag_bits")


@pytest.fixture(autouse=True, scope="module")
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zip_parts, "PIECE_BYTES", 400)  # an entry below takes up to 46 + 48 + 20 bytes
        yield


def written(members, file, comment=b""):
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = comment
        for name, data, compression, own_comment in members:
            info = zipfile.ZipInfo(name)
            info.compress_type, info.comment = compression, own_comment
            archive.writestr(info, data)
    return file


def in_parts(file):
    return [
        (*(getattr(info, name) for name in DETAILS), part.read(info))
        for part in zip_parts.open_parts(file)
        for info in part.infolist()
    ]


def at_once(file):
    with zipfile.ZipFile(file) as archive:
        return [(*(getattr(info, name) for name in DETAILS), archive.read(info)) for info in archive.infolist()]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@given(MEMBERS, st.binary(max_size=50), st.binary(max_size=50))
@settings(max_examples=60, deadline=None)
def test_all_parts_together_have_the_members_of_the_zip_in_order_whatever_is_before_and_after(members, before, after):
    file = written(members, io.BytesIO(), comment=after)
    assert in_parts(file) == at_once(file)
    behind = io.BytesIO(before + file.getvalue())  # as behind the program of a self-extracting zip
    assert in_parts(behind) == at_once(behind)


def test_there_are_many_parts():
    file = written([(f"{number:05}.png", b"x", 0, b"") for number in range(1000)], io.BytesIO())
    sizes = [len(part.infolist()) for part in zip_parts.open_parts(file)]
    assert sum(sizes) == 1000 and max(sizes) < 10


def test_members_beyond_4_gib_and_more_than_65535_of_them_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_parts, "PIECE_BYTES", 2**18)
    with (tmp_path / "large.zip").open("w+b") as file:
        file.seek(5 * 2**30)  # a hole: it takes no room
        written([(f"{number}.png", b"x", 0, b"") for number in range(70_000)], file)
        found = [(info.filename, info.header_offset) for part in zip_parts.open_parts(file) for info in part.infolist()]
        assert len(found) == 70_000
        assert found[0] == ("0.png", 5 * 2**30)
        *_, last = zip_members.members(file)
        assert (last[0], last[2]()) == ("69999.png", b"x")


def newer_check(original):
    """Return the check of the 64-bit record that Python has since 2025 (CVE-2025-8291), for a version before."""

    def checked(file, offset, end):
        found = original(file, offset, end)
        if found[zipfile._ECD_SIGNATURE] == zipfile.stringEndArchive64:
            file.seek(offset - zipfile.sizeEndCentDir64Locator, 2)
            locator = file.read(zipfile.sizeEndCentDir64Locator)
            where = struct.unpack(zipfile.structEndArchive64Locator, locator)[2]
            file.seek(where)
            if len(file.read(zipfile.sizeEndCentDir64)) != zipfile.sizeEndCentDir64:
                raise OSError("Unknown I/O error")
            if found[zipfile._ECD_OFFSET] + found[zipfile._ECD_SIZE] != where:
                raise zipfile.BadZipFile("Corrupt zip64 end of central directory record")
            if not isinstance(file, zip_parts._File):  # ZipFile itself, which reads these, is still of this version
                found[zipfile._ECD_LOCATION] -= zipfile.sizeEndCentDir64 + zipfile.sizeEndCentDir64Locator
        return found

    return checked


@pytest.mark.skipif("diroffset + dirsize" in inspect.getsource(zipfile), reason="this Python has the check")
@pytest.mark.parametrize("before", [b"", b"#!program" * 100])
@pytest.mark.parametrize("members", [0, 1, 30, 70_000])
def test_newer_versions_of_python_that_check_the_end_record_read_it_too(before, members, monkeypatch):
    monkeypatch.setattr(zip_parts, "PIECE_BYTES", 400 if members < 100 else 2**18)
    file = written([(f"{number}.png", b"x", 0, b"") for number in range(members)], io.BytesIO())
    file = io.BytesIO(before + file.getvalue())
    expected = zipfile.ZipFile(file).namelist()
    monkeypatch.setattr(zipfile, "_EndRecData64", newer_check(zipfile._EndRecData64))
    parts = list(zip_parts.open_parts(file))
    assert [name for part in parts for name in part.namelist()] == expected
    assert all(part.read(part.namelist()[-1]) == b"x" for part in parts)


def test_a_zip_whose_front_is_cut_off_has_its_other_members():
    whole = written([(f"{number}.png", b"x", 0, b"") for number in range(10)], io.BytesIO()).getvalue()
    listed = zip_members.list_members(io.BytesIO(whole[20:]))
    assert len(listed) == 10
    first, *others = [load for *_, load in zip_members.members(io.BytesIO(whole[20:]))]
    assert all(load() == b"x" for load in others)
    with pytest.raises((zipfile.BadZipFile, ValueError)):
        first()


@pytest.mark.parametrize("kept", [0, 10, 40, 0.5, 0.9, -1])
def test_a_zip_that_is_cut_off_is_an_error_of_zipfile(kept):
    whole = written([(f"{number}.png", b"x" * 50, 0, b"") for number in range(40)], io.BytesIO()).getvalue()
    cut = whole[: int(kept * len(whole)) if 0 < kept < 1 else kept]
    with pytest.raises(zipfile.BadZipFile):
        in_parts(io.BytesIO(cut))


@pytest.fixture(scope="module")
def of_two_pieces():
    return written([(f"{number}.png", b"x", 0, b"c") for number in range(6000)], io.BytesIO()).getvalue()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_damaged_index_is_read_as_zipfile_reads_it(of_two_pieces, data):
    start = of_two_pieces.index(b"PK\1\2")
    damaged = bytearray(of_two_pieces)
    damaged[data.draw(st.integers(start, len(damaged) - 1))] = data.draw(st.integers(0, 255))

    def members(read):
        try:
            return [tuple(getattr(info, name) for name in DETAILS) for info in read()]
        except Exception as error:
            return type(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zip_parts, "PIECE_BYTES", 2**18)
        found = members(
            lambda: [info for part in zip_parts.open_parts(io.BytesIO(damaged)) for info in part.infolist()]
        )
    assert found == members(lambda: zipfile.ZipFile(io.BytesIO(damaged)).infolist())


def test_reading_takes_a_few_megabytes_and_listing_100_bytes_a_member_more(monkeypatch):
    monkeypatch.setattr(zip_parts, "PIECE_BYTES", 2**18)
    file = written([(f"folder/{number:06}.png", b"x", 0, b"") for number in range(20_000)], io.BytesIO())

    def peak(read):
        tracemalloc.start()
        read()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(lambda: zipfile.ZipFile(file)) > 400 * 20_000
    assert peak(lambda: sum(1 for _ in zip_members.members(file))) < 8e6  # however many there are
    assert peak(lambda: zip_members.list_members(file)) < 8e6 + 100 * 20_000
