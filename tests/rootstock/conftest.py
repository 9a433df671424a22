"""The small dataset that tests of extraction share, its features, and the backbone that made them."""

from pathlib import Path

import pytest

from rootstock.backbones import backbones
from tests.small_dataset import Small, small_backbone, small_dataset, small_features


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """Where what tests share is made, once a session (tests/small_dataset.py)."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def small(base) -> Small:
    """A dataset of two domains in several shards; nothing writes to it."""
    return small_dataset(base)


@pytest.fixture(scope="session")
def folder(base) -> Path:
    """The features of the dataset; nothing writes to them."""
    return small_features(base)


@pytest.fixture
def backbone(base) -> backbones.Backbone:
    """The backbone of those features; a test may do with it what it likes."""
    return backbones.load(small_backbone(base))
