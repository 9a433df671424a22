"""A dataset from which most images were removed; tests of compaction share it."""

import shutil

import pytest

from tests.small_dataset import draw
from tests.sparse_shards import NARROW, WIDE, Store, fill


@pytest.fixture(scope="session")
def sparse(tmp_path_factory) -> Store:
    """A dataset most of whose first images were removed; do not change it, copy it."""
    store = Store(tmp_path_factory.mktemp("sparse"))
    draw(store.source, images=14)
    store.aside.mkdir()
    store.ingest()
    draw(store.source, images=6, first=14)
    store.ingest()
    fill(store.features / WIDE, store, "float32")
    fill(store.features / NARROW, store, "float16")
    fill(store.tried / WIDE, store, "float32")
    store.remove()
    return store


@pytest.fixture
def store(sparse, tmp_path) -> Store:
    shutil.copytree(sparse.root, tmp_path / "store")
    copy = Store(tmp_path / "store")
    copy.ingest()  # its sources are elsewhere now: their files are looked at again
    return copy
