"""A fit that is stopped goes on after its last pass over the features, and ends with the same bytes."""

import errno

import numpy as np
import pytest

from rootstock.config import params
from rootstock.features.reader import Features
from rootstock.training import heads, kept_passes
from rootstock.training.head import Head
from rootstock.training.log_loss import LogLoss
from tests.small_dataset import CLASSES, small_dataset, small_features

SETTINGS = params.Head(kind="logistic", l2=(1000.0, 100.0), max_iterations=20)


class Killed(BaseException):
    """As a kill: nothing handles it."""


@pytest.fixture
def split(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    small, folder = small_dataset(base), small_features(base)
    return lambda name: Features(folder, small.split(name))


@pytest.fixture
def counted(monkeypatch):
    """Counts the passes that are computed; a fit is killed in the one after `most`."""
    passes, evaluate = {"computed": 0, "most": 10**9}, LogLoss._evaluate

    def computed(self, at):
        if passes["computed"] == passes["most"]:
            raise Killed
        passes["computed"] += 1
        return evaluate(self, at)

    monkeypatch.setattr(LogLoss, "_evaluate", computed)
    return passes


@pytest.fixture
def clock(counted, monkeypatch):
    """As if every pass took a second and a half."""
    monkeypatch.setattr(kept_passes.time, "monotonic", lambda: 1.5 * counted["computed"])


@pytest.fixture
def long(monkeypatch):
    """As if every pass took long."""
    monkeypatch.setattr(kept_passes, "EVERY_S", 0.0)


def fit(split, folder, settings=SETTINGS) -> Head:
    val = split("val")
    return heads.fit(split("train"), val, CLASSES, settings, np.arange(len(val)), "train_head", passes=folder).head


def bytes_of(head: Head) -> tuple[bytes, bytes, list]:
    return head.weight.tobytes(), head.bias.tobytes(), head.path


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_fit_that_was_killed_computes_no_pass_twice_and_gives_the_same_head(split, tmp_path, counted, share, caplog):
    caplog.set_level("INFO")
    whole = fit(split, None)
    needed, counted["computed"] = counted["computed"], 0
    counted["most"] = int(share * needed)
    with pytest.raises(Killed):
        fit(split, tmp_path)
    counted["most"] = 10**9
    assert bytes_of(fit(split, tmp_path)) == bytes_of(whole)
    assert counted["computed"] == needed
    assert "resuming an interrupted run: " in caplog.text


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_of_a_fit_of_many_short_passes_twenty_seconds_are_repeated_at_most(split, tmp_path, counted, share):
    settings = SETTINGS.model_copy(update={"l2": (1e4, 1e3, 100.0, 10.0)})
    whole = fit(split, None, settings)
    needed, counted["computed"] = counted["computed"], 0
    counted["most"] = int(share * needed)
    with pytest.raises(Killed):
        fit(split, tmp_path, settings)
    counted["most"] = 10**9
    assert bytes_of(fit(split, tmp_path, settings)) == bytes_of(whole)
    assert needed <= counted["computed"] <= needed + kept_passes.EVERY_S / 1.5 + 1


@pytest.mark.usefixtures("clock")
def test_strengths_so_large_that_no_iteration_is_needed_are_kept_like_others(split, tmp_path):
    settings = SETTINGS.model_copy(update={"l2": (1e16, 1e15, 1e14, 10.0, 1.0, 0.1), "max_iterations": 300})
    assert bytes_of(fit(split, tmp_path, settings)) == bytes_of(fit(split, None, settings))
    assert list(tmp_path.rglob("results-*"))


@pytest.mark.usefixtures("long")
def test_passes_that_an_earlier_version_left_do_no_harm(split, tmp_path):
    fit(split, tmp_path)
    [folder] = tmp_path.iterdir()
    (folder / f"{'0a' * 32}.safetensors").write_bytes(b"as it was")
    assert bytes_of(fit(split, tmp_path)) == bytes_of(fit(split, None))


@pytest.mark.usefixtures("long")
def test_passes_leave_the_disk_when_their_strength_is_fitted(split, tmp_path):
    fit(split, tmp_path)
    [folder] = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 1 + len(SETTINGS.l2)  # the axes, and each solution


def test_a_full_disk_stops_no_fit_and_fills_no_memory(split, tmp_path, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept_passes, "EVERY_S", 0.0)
    monkeypatch.setattr(kept_passes, "save_file", full)
    assert bytes_of(fit(split, tmp_path)) == bytes_of(fit(split, None))
    assert "not written, so that a run that is stopped repeats it" in caplog.text


@pytest.mark.usefixtures("long")
def test_passes_over_other_labels_or_with_other_class_weights_are_not_taken_over(split, tmp_path, counted):
    fit(split, tmp_path)
    first = counted["computed"]
    [folder] = tmp_path.iterdir()
    relabelled = split("train")
    relabelled.labels[:] = np.roll(relabelled.labels, 1)
    val = split("val")
    heads.fit(relabelled, val, CLASSES, SETTINGS, np.arange(len(val)), passes=tmp_path)
    assert counted["computed"] > first
    assert list(tmp_path.iterdir()) != [folder] and len(list(tmp_path.iterdir())) == 1
    before = counted["computed"]
    fit(split, tmp_path, SETTINGS.model_copy(update={"class_weight": "balanced"}))
    assert counted["computed"] > before


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("chosen", ["cut short", "hardly begun"])
def test_what_is_damaged_is_computed_again(split, tmp_path, counted, caplog, chosen):
    whole = fit(split, tmp_path)
    needed, counted["computed"] = counted["computed"], 0
    [folder] = tmp_path.iterdir()
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[: -50 if chosen == "cut short" else 50])
    assert bytes_of(fit(split, tmp_path)) == bytes_of(whole)
    assert counted["computed"] == needed and "is damaged: computed again" in caplog.text


def test_short_passes_leave_nothing(split, tmp_path):
    fit(split, tmp_path)
    assert not list(tmp_path.rglob("*"))
