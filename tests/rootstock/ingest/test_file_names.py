"""File names that point outside their folder or archive are unsafe; names that are not UTF-8 are escaped."""

import pytest

from rootstock.ingest.file_names import is_unsafe, storable


@pytest.mark.parametrize(
    "path", ["/etc/1.jpg", "../1.jpg", "ants/../../1.jpg", "C:/1.jpg", "C:\\1.jpg", "\\\\host\\1.jpg", "a\\..\\1.jpg"]
)
def test_names_that_point_outside_their_folder_are_unsafe(path):
    assert is_unsafe(path)


@pytest.mark.parametrize("path", ["ants/1.jpg", "./ants/1.jpg", "ants..2/1..jpg", "a:b/1.jpg"])
def test_other_names_are_safe(path):
    assert not is_unsafe(path)


def test_names_that_are_not_utf_8_are_escaped():
    assert storable("käfer/1.jpg") == "käfer/1.jpg"
    assert storable(b"k\xe4fer/1.jpg".decode("utf-8", "surrogateescape")) == r"k\xe4fer/1.jpg"
