"""Features that do not fit into memory are decoded once for a fit, and lie rotated in a file without a name."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from rootstock.config import params
from rootstock.features import reader
from rootstock.features.reader import Features
from rootstock.training import heads, rotated_file
from rootstock.training.rotated_file import Batch
from tests.small_dataset import CLASSES, small_dataset, small_features


def batches(sizes: list[int], width: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    return [(torch.from_numpy(rng.random((m, width), np.float32)), torch.arange(m)) for m in sizes]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let writes beyond a size in bytes fail, as on a full disk."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@pytest.fixture
def large(monkeypatch):
    """As if no features fitted into memory; counts how often they are read."""
    monkeypatch.setattr(reader, "KEPT_BYTES", 0)
    read, stream = {"times": 0}, Features._stream

    def counted(self):
        read["times"] += 1
        yield from stream(self)

    monkeypatch.setattr(Features, "_stream", counted)
    return read


def fit(base: Path, folder: Path | None, iterations: int) -> heads.Head:
    """Fit the head of the small dataset, whose passes are kept in the folder."""
    small, features = small_dataset(base), small_features(base)
    train, val = (Features(features, small.split(name)) for name in ("train", "val"))
    own = params.Head(kind="logistic", l2=(10.0,), max_iterations=iterations)
    return heads.fit(train, val, CLASSES, own, np.arange(len(val)), passes=folder).head


@given(st.lists(st.integers(1, 20), max_size=8), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_mini_batches_come_back_as_they_were_as_often_as_wanted(tmp_path_factory, sizes, width):
    folder = tmp_path_factory.getbasetemp() / "passes"
    written = batches(sizes, width)
    kept = rotated_file.write(folder, written, sum(sizes), width)
    assert kept is not None
    for _ in range(2):
        for (x, labels), (expected, own) in zip(kept, written, strict=True):
            assert torch.equal(x, expected)
            assert torch.equal(labels, own)
    assert list(folder.iterdir()) == []


def test_a_fit_reads_features_no_more_often_for_more_passes(tmp_path, tmp_path_factory, large):
    times = []
    for iterations in (2, 12):
        large["times"] = 0
        fit(tmp_path_factory.getbasetemp(), tmp_path / str(iterations), iterations)
        times.append(large["times"])
    assert times[0] == times[1]


def test_the_head_is_that_of_features_in_memory(tmp_path, tmp_path_factory, monkeypatch):
    base = tmp_path_factory.getbasetemp()
    in_memory = fit(base, tmp_path / "few", 12)
    monkeypatch.setattr(reader, "KEPT_BYTES", 0)
    assert np.array_equal(fit(base, tmp_path / "many", 12).weight, in_memory.weight)


def test_a_disk_with_too_little_room_is_left_alone(tmp_path, caplog):
    assert rotated_file.write(tmp_path, batches([3], 4), 10**17, 4) is None
    assert "with 3200000000.0 GB, passes over the features would take less time" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("large")
def test_a_disk_that_fills_up_stops_no_fit(tmp_path, tmp_path_factory, caplog):
    base = tmp_path_factory.getbasetemp()
    expected = fit(base, None, 12)
    with files_of_at_most(1000):
        found = fit(base, tmp_path, 12)
    assert np.array_equal(found.weight, expected.weight)
    assert "no temporary file of rotated features, so that passes take longer: [Errno 27] File too large" in caplog.text
