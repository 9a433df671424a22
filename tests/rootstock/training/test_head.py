"""The linear head is read as it was written."""

import json

import numpy as np

from rootstock.training import head
from rootstock.training.logistic import fit_logistic_path
from tests.simulated_features import simulated


def test_a_head_is_read_as_it_was_written(tmp_path):
    fitted = fit_logistic_path(simulated(50), simulated(50, seed=1), ["Äpfel", "b", "c"], (1.0, 0.1))
    head.save(fitted, tmp_path / "head", {"images": {"train": 50}})
    read = head.load(tmp_path / "head")
    assert (read.classes, read.l2, read.path) == (fitted.classes, fitted.l2, fitted.path)
    assert np.array_equal(read.weight, fitted.weight) and np.array_equal(read.bias, fitted.bias)
    assert read.weight.dtype == read.bias.dtype == np.float32
    described = json.loads((tmp_path / "head" / head.DESCRIPTION).read_text(encoding="utf-8"))
    assert list(described) == [
        "classes",
        "l2",
        "path",
        "layer",
        "pooling",
        "warnings",
        "digest",
        "images",
        "kind",
        "neighbours",
        "tried",
        "why",
    ]
    before = {path.name: path.read_bytes() for path in (tmp_path / "head").iterdir()}
    again = fit_logistic_path(simulated(50), simulated(50, seed=1), ["Äpfel", "b", "c"], (1.0, 0.1))
    head.save(again, tmp_path / "head", {"images": {"train": 50}})
    assert {path.name: path.read_bytes() for path in (tmp_path / "head").iterdir()} == before
