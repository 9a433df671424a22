"""Folders of photos, the datasets and sources that are made of them, and an empty remote store."""

import fsspec
import pytest

from rootstock.config import params
from rootstock.ingest import sources
from rootstock.ingest.scan import Scan
from tests import listing, store as datasets
from tests.images import put_classes
from tests.torchvision_site import torchvision_site


@pytest.fixture
def store(tmp_path):
    """The folders of a dataset that is yet to be ingested."""
    return datasets.Store(tmp_path / "store")


@pytest.fixture
def photos(tmp_path):
    """A folder with 15 photos of three classes."""
    return put_classes(tmp_path / "photos", datasets.CLASSES)


@pytest.fixture
def five_photos(tmp_path):
    """A folder with five photos of two classes, at listing.PATHS."""
    return put_classes(tmp_path / "photos", listing.CLASSES)


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
def memory():
    """An empty remote store."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The web site that torchvision downloads from."""
    with torchvision_site(tmp_path / "site", monkeypatch) as opened:
        yield opened
