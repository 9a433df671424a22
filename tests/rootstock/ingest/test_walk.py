"""Finding the files below a folder of a remote store, some folders at a time."""

import tracemalloc
from collections import deque
from typing import Any

import boto3
import fsspec
import pytest
from fsspec.spec import AbstractFileSystem
from hypothesis import given, settings, strategies as st

from rootstock.ingest import walk

NAMES = st.sampled_from("abc")
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)


@given(paths=st.sets(PATHS, max_size=30), lists=st.integers(0, 6))
@settings(deadline=None)
def test_all_files_are_found_however_many_folders_are_listed_by_themselves(paths, lists):
    store = fsspec.filesystem("memory")
    store.store.clear()
    for path in paths:
        store.pipe_file(f"/photos/{path}.png", b"x" * len(path))
        store.pipe_file(f"/other/{path}.png", b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk, "MAX_LISTS", lists)
        found = list(walk.files(store, "/photos")) if paths else []
    store.store.clear()
    assert sorted(place for place, _ in found) == sorted(f"/photos/{path}.png" for path in paths)
    assert all(info["size"] == len(place) - len("/photos/.png") for place, info in found)


class ManyFolders(AbstractFileSystem):
    """A store of fifty folders with a thousand files each."""

    cachable = False

    def ls(self, path: str, detail: bool = True, **_: object) -> list[dict[str, Any]]:
        if path.strip("/") == "photos":
            return [{"name": f"photos/{folder}", "type": "directory", "size": 0} for folder in range(50)]
        return [
            {"name": f"{path}/{file}.jpg", "type": "file", "size": file, "ETag": f"{path}{file}"}
            for file in range(1000)
        ]


def test_no_more_than_a_few_folders_are_in_memory_at_a_time():
    def peak(found: Any) -> int:
        tracemalloc.start()
        deque(found, maxlen=0)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    at_once = peak(ManyFolders().find("photos", detail=True).values() for _ in range(1))
    assert peak(walk.files(ManyFolders(), "photos")) < at_once / 3
    assert sum(1 for _ in walk.files(ManyFolders(), "photos")) == 50_000


@pytest.mark.parametrize("lists", [0, 1, 100])
def test_entries_that_mark_empty_folders_of_a_bucket_are_found_and_no_listing_is_kept(s3, monkeypatch, lists):
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=s3.url)
    names = [
        "walk/a/1.jpg",
        "walk/a/2.jpg",
        "walk/a/",
        "walk/empty/",
        "walk/deep/empty/",
        "walk/deep/b/3.jpg",
        "walk/4.jpg",
        "walk/deep//6.jpg",  # in a folder without a name
        "walk/deep/b",  # a file with the name of a folder
    ]
    for name in [*names, "walk2/5.jpg"]:
        client.put_object(Bucket=s3.bucket, Key=name, Body=b"")
    store = fsspec.filesystem("s3", endpoint_url=s3.url, skip_instance_cache=True)
    monkeypatch.setattr(walk, "MAX_LISTS", lists)
    found = sorted(place for place, _ in walk.files(store, f"{s3.bucket}/walk"))
    assert found == sorted(f"{s3.bucket}/{name}" for name in names)
    assert not store.dircache
