"""Checkpoints after each epoch, however short, so that tests can stop a run between them."""

import pytest

from rootstock.training import stages


@pytest.fixture(autouse=True)
def checkpoint_after_each_epoch(monkeypatch):
    monkeypatch.setattr(stages, "CHECKPOINT_S", 0.0)
