"""Shards are plain tar files: the same images give the same bytes, an image is read by its place, and a shard is
complete or absent."""

import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rootstock.dataset import shards, tar_headers
from rootstock.dataset.shards import Member, Place, Reader, Writer
from rootstock.system.errors import SourceError


def content(number: int) -> bytes:
    return np.random.default_rng(number).bytes(200 + 37 * number)


def name(number: int) -> str:
    return f"{number:064x}"


def fill(folder, numbers, shard_bytes=10**6, first=0) -> dict[str, tuple[str, Place]]:
    """Write images into as many shards as they take; returns where each is."""
    places, waiting = {}, []
    with Writer(folder, first, shard_bytes) as writer:
        for number in numbers:
            waiting.append((name(number), writer.add(name(number), "PNG", content(number))))
            if writer.full:
                shard = writer.close()
                places |= {image: (shard, place) for image, place in waiting}
                waiting = []
        if not writer.empty:
            shard = writer.close()
            places |= {image: (shard, place) for image, place in waiting}
    return places


def files_in(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_image_is_read_back_by_its_place(tmp_path):
    places = fill(tmp_path, range(10))
    with Reader(tmp_path) as reader:
        for number in (3, 9, 0, 3):
            shard, place = places[name(number)]
            assert reader.read(shard, place.offset, place.size) == content(number)


def test_images_are_read_back_by_many_threads(tmp_path):
    places = fill(tmp_path, range(40), shard_bytes=5000)
    numbers = [number % 40 for number in range(400)]
    with Reader(tmp_path) as reader, ThreadPoolExecutor(8) as pool:

        def read(number: int) -> bytes:
            shard, place = places[name(number)]
            return reader.read(shard, place.offset, place.size)

        assert list(pool.map(read, numbers)) == [content(number) for number in numbers]


def test_of_many_shards_some_stay_open_and_all_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST_OPEN", 3)
    places = fill(tmp_path, range(20), shard_bytes=1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Reader(tmp_path) as reader, ThreadPoolExecutor(8) as pool:

        def read(number: int) -> bytes:
            shard, place = places[name(number)]
            return reader.read(shard, place.offset, place.size)

        numbers = [*range(20)] * 20
        assert list(pool.map(read, numbers)) == [content(number) for number in numbers]
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3 + 8  # threads may open some at once
        assert len(places) == len({shard for shard, _ in places.values()})
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_shard_is_readable_by_tarfile(tmp_path):
    places = fill(tmp_path, range(5))
    (shard,) = {shard for shard, _ in places.values()}
    with tarfile.open(shards.path_of(tmp_path, shard)) as tar:
        assert tar.getnames() == [f"{name(number)}.png" for number in range(5)]
        assert [tar.extractfile(member).read() for member in tar] == [content(number) for number in range(5)]


@given(st.lists(st.tuples(st.sampled_from(sorted(shards.EXTENSION_OF)), st.binary(max_size=3000)), min_size=1))
def test_a_shard_has_the_bytes_that_tarfile_would_write(tmp_path_factory, images):
    folder, expected = tmp_path_factory.mktemp("shards"), BytesIO()
    with (
        Writer(folder, 0, 10**9) as writer,
        tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, (format, data) in enumerate(images):
            place = writer.add(name(number), format, data)
            assert place == Place(tar.offset + tarfile.BLOCKSIZE, len(data))
            member = tarfile.TarInfo(f"{name(number)}.{shards.EXTENSION_OF[format]}")
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
        shard = writer.close()
    assert shards.path_of(folder, shard).read_bytes() == expected.getvalue()


@given(st.integers(0, 8**11 - 1))
def test_a_header_can_hold_every_size_allowed_in_a_tar(size):
    member = tarfile.TarInfo.frombuf(tar_headers.header("a.png", size), "ascii", "strict")  # checks the sum
    assert (member.name, member.size) == ("a.png", size)


def test_the_place_of_every_image_is_found_from_the_headers_alone(tmp_path):
    places = fill(tmp_path, range(5))
    (shard,) = shards.names(tmp_path)
    assert {image: (shard, place) for image, place in shards.iter_places(tmp_path, shard)} == places


def test_equal_images_in_equal_order_give_equal_files(tmp_path):
    fill(tmp_path / "one", range(30), shard_bytes=5000)
    fill(tmp_path / "two", range(30), shard_bytes=5000)
    assert len(files_in(tmp_path / "one")) > 3
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")


def test_the_name_of_a_shard_depends_on_content_and_order(tmp_path):
    for folder, numbers in (("a", [1, 2]), ("b", [2, 1]), ("c", [1, 3])):
        fill(tmp_path / folder, numbers)
    assert len({shards.names(tmp_path / folder)[0] for folder in "abc"}) == 3


def test_a_shard_is_closed_when_it_is_full(tmp_path):
    fill(tmp_path, range(30), shard_bytes=5000)
    sizes = [shards.path_of(tmp_path, shard).stat().st_size for shard in shards.names(tmp_path)]
    assert max(sizes) < 5000 + tarfile.RECORDSIZE + 2000  # the image that fills it, and tar's padding


def test_shards_are_listed_by_number(tmp_path):
    fill(tmp_path, range(30), shard_bytes=3000, first=7)
    assert [shards.number_of(shard) for shard in shards.names(tmp_path)] == list(
        range(7, 7 + len(shards.names(tmp_path)))
    )


def test_other_files_in_the_folder_are_not_listed_as_shards(tmp_path):
    fill(tmp_path, range(3))
    (tmp_path / "backup.tar").write_bytes(b"mine")
    (tmp_path / ".gitignore").write_text("/x")
    assert len(shards.names(tmp_path)) == 1


def test_an_error_while_writing_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), Writer(tmp_path, 0, 10**6) as writer:
        writer.add(name(1), "PNG", content(1))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_shard_has_its_name_only_when_it_is_complete(tmp_path):
    with Writer(tmp_path, 0, 10**6) as writer:
        writer.add(name(1), "PNG", content(1))
        assert shards.names(tmp_path) == []
        shard = writer.close()
        assert shards.names(tmp_path) == [shard]


def test_a_truncated_shard_is_an_error_that_says_how_to_restore_it(tmp_path):
    places = fill(tmp_path, range(5))
    shard, place = places[name(4)]
    path = shards.path_of(tmp_path, shard)
    path.write_bytes(path.read_bytes()[: place.offset + 10])
    with (
        Reader(tmp_path) as reader,
        pytest.raises(OSError, match=r"000000-.*\.tar: ends before byte .* `dvc checkout`"),
    ):
        reader.read(shard, place.offset, place.size)


def test_a_missing_shard_is_an_error_that_names_it(tmp_path):
    with Reader(tmp_path) as reader, pytest.raises(FileNotFoundError, match="000003-abc"):
        reader.read("000003-abc", 0, 10)


def test_a_downscaled_image_is_verified_by_the_digest_in_the_name_of_its_shard(tmp_path):
    came, data = "0" * 64, b"smaller" * 100  # the id is the digest of the file that came in
    with shards.Writer(tmp_path, 0, 2**20) as writer:
        place = writer.add(came, "PNG", data)
        name = writer.close()
    with shards.Reader(tmp_path) as reader:
        assert reader.image(name, place.offset, place.size, came) == data
    path = shards.path_of(tmp_path, name)
    path.write_bytes(path.read_bytes().replace(b"smaller", b"SMALLER", 1))
    shards.is_intact.cache_clear()
    with shards.Reader(tmp_path) as reader, pytest.raises(SourceError, match="are not those of image 000000000000"):
        reader.image(name, place.offset, place.size, came)


def by_tarfile(path: Path) -> list[Member] | None:
    try:
        with tarfile.open(path, "r:") as tar:
            return [Member(member.name, member.offset_data, member.size) for member in tar]
    except tarfile.TarError:
        return None


def by_us(path: Path) -> list[Member] | None:
    try:
        return list(shards.iter_members(path.parent, path.name.removesuffix(".tar")))
    except SourceError:
        return None


@given(st.lists(st.binary(max_size=1500), min_size=1, max_size=4), st.integers(0, 8000), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_the_members_of_a_damaged_shard_are_those_that_tarfile_finds(contents, at, value):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with Writer(folder, 0, 10**9) as writer:
            for index, data in enumerate(contents):
                writer.add(f"{index}" * 64, "PNG", data)
            path = shards.path_of(folder, writer.close())
        whole = path.read_bytes()
        assert by_us(path) == by_tarfile(path) != []
        path.write_bytes(whole[:at])  # cut
        assert by_us(path) == by_tarfile(path)
        damaged = bytearray(whole)
        damaged[at % len(whole)] = value
        path.write_bytes(damaged)
        assert by_us(path) == by_tarfile(path)
