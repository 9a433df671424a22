"""Files of unknown size are read up to a limit, with memory for what they hold."""

import tracemalloc
from pathlib import Path

import pytest

from rootstock.system import files

LIMIT = 2**29


@pytest.mark.parametrize(
    ("size", "most", "expected"), [(10, 100, 10), (100, 100, 100), (101, 100, 101), (500, 100, 101)]
)
def test_a_file_is_read_up_to_one_byte_more_than_the_limit(tmp_path, size, most, expected):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 2)
    with path.open("r+b") as file:
        file.truncate(size)
    assert files.read(path, most) == path.read_bytes()[:expected]


def test_a_high_limit_takes_no_memory(tmp_path):
    path = tmp_path / "small"
    path.write_bytes(bytes(1000))
    tracemalloc.start()
    try:
        files.read(path, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_file_that_has_grown_since_its_size_was_asked_is_read_whole():
    text = files.read("/proc/self/status", LIMIT)  # its size is 0, whatever it holds
    assert text.startswith(b"Name:") and text.endswith(b"\n")
    assert len(files.read("/proc/self/status", 10)) == 11
