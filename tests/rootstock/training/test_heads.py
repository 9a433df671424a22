"""Which head is chosen, and why; a head within a network computes what it computes alone."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from rootstock.config.params import Head as Settings
from rootstock.system import progress
from rootstock.system.errors import ParamsError, SourceError
from rootstock.training import closed_form, head, head_layer, heads
from rootstock.training.head_layer import HeadLayer
from tests.simulated_features import Chunks, simulated

CLASSES = ["a", "b", "c"]
KINDS = ("prototype", "ridge", "logistic", "knn")


def fit(kind: str, train: Chunks, val: Chunks) -> heads.Fitted:
    return heads.fit(train, val, CLASSES, Settings(kind=kind), np.arange(len(val)))


def losses(**means: float) -> dict[str, np.ndarray]:
    """Log losses of 100 images; those of a kind deviate from the first kind's by chance."""
    rng = np.random.default_rng(0)
    common = rng.exponential(0.2, 100)
    return {kind: common - common.mean() + mean + rng.normal(0, 0.05, 100) for kind, mean in means.items()}


def test_the_kind_with_the_lowest_log_loss_is_chosen_if_the_difference_is_clear():
    chosen, tried, why = heads.choose(losses(prototype=0.5, ridge=0.3, logistic=0.2), np.arange(100))
    assert chosen == "logistic"
    assert [entry["kind"] for entry in tried] == ["prototype", "ridge", "logistic"]
    assert (
        why == f"logistic regression chosen: validation log loss {tried[2]['val_log_loss']:.3f}, the lowest of 3 kinds"
    )


def test_a_simpler_kind_within_one_standard_error_is_chosen():
    chosen, tried, why = heads.choose(losses(prototype=0.5, ridge=0.203, logistic=0.2), np.arange(100))
    assert chosen == "ridge"
    assert "within one standard error" in why and why.endswith("of logistic regression, and simpler")
    assert tried[2]["standard_error"] == 0


def test_the_standard_error_is_that_of_groups():
    values = losses(ridge=0.207, logistic=0.2)
    repeated = {kind: np.repeat(found, 25) for kind, found in values.items()}
    of_images, of_groups = (
        heads.choose(repeated, groups)[1][0]["standard_error"]
        for groups in (np.arange(2500), np.repeat(np.arange(100), 25))
    )
    alone = heads.choose(values, np.arange(100))[1][0]["standard_error"]
    assert of_groups == pytest.approx(alone) and of_images < alone / 4


@pytest.mark.parametrize(("fits", "reported"), [(False, [("train_head, principal axes", 800, 800)]), (True, [])])
def test_long_passes_for_the_principal_axes_report_each_image(fits, reported, monkeypatch):
    monkeypatch.setattr(Chunks, "fits_into_memory", fits)
    tallies = []

    @contextmanager
    def report(what, total, unit):
        tallies.append(progress.Tally(what, total, unit))
        yield tallies[-1].add

    with progress.report_to(report):
        heads.fit(simulated(400), simulated(300, seed=1), CLASSES, Settings(), np.arange(300), "train_head")
    assert [(told.what, told.done, told.total) for told in tallies if told.unit == "images"] == reported


def test_auto_tries_every_kind_and_says_why_it_chose_one(caplog):
    caplog.set_level("INFO")
    train, val = simulated(400), simulated(300, seed=1)
    fitted = heads.fit(train, val, CLASSES, Settings(kind="auto"), np.arange(300), "train_head").head
    assert [entry["kind"] for entry in fitted.tried] == list(KINDS)
    assert fitted.kind in KINDS and fitted.why in caplog.text
    lowest = min(entry["val_log_loss"] for entry in fitted.tried)
    own = next(entry for entry in fitted.tried if entry["kind"] == fitted.kind)
    assert own["val_log_loss"] <= lowest + own["standard_error"]


def test_nearest_neighbours_win_where_classes_are_islands_and_fine_tuning_starts_from_a_linear_head(tmp_path):
    def islands(n: int, seed: int) -> Chunks:
        rng = np.random.default_rng(seed)
        labels, place = rng.integers(0, 3, n), rng.integers(0, 5, n)
        centres = np.random.default_rng(9).normal(0, 4, (5, 3, 6))  # each class has five, mixed with the others'
        return Chunks((centres[place, labels] + rng.normal(0, 0.3, (n, 6))).astype(np.float32), labels)

    fitted = fit("auto", islands(600, 0), islands(300, 1))
    assert fitted.head.kind == "knn" and fitted.linear.kind in ("logistic", "ridge")
    head.save(fitted.head, tmp_path / "head", {}, fitted.linear)
    assert head.load(tmp_path / "head").kind == "knn"
    assert head.load_linear(tmp_path / "head").kind == fitted.linear.kind
    alone = fit("knn", islands(600, 0), islands(300, 1))
    assert alone.linear.kind == "logistic" and alone.head.neighbours == fitted.head.neighbours


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_read_as_it_was_written_and_computes_the_same_within_a_network(tmp_path, kind):
    train, val = simulated(100), simulated(60, seed=1)
    fitted = fit(kind, train, val).head
    head.save(fitted, tmp_path / "head", {})
    read = head.load(tmp_path / "head")
    assert np.array_equal(read.logits(val.x), fitted.logits(val.x))
    assert (read.kind, read.describe(), read.val_accuracy) == (kind, fitted.describe(), fitted.val_accuracy)
    layer = HeadLayer(read)
    with torch.inference_mode():
        np.testing.assert_allclose(layer(torch.from_numpy(val.x)).numpy(), fitted.logits(val.x), atol=2e-4)
    empty = HeadLayer(head_layer.empty(head_layer.describe(layer), CLASSES, train.width))
    empty.load_state_dict(layer.state_dict())
    assert np.array_equal(empty.to_head(CLASSES).logits(val.x), fitted.logits(val.x))


def test_too_many_images_for_nearest_neighbours_are_an_error_and_auto_leaves_them_out(monkeypatch):
    monkeypatch.setattr(closed_form, "MAX_EXEMPLAR_BYTES", 1000)
    train, val = simulated(100), simulated(60, seed=1)
    with pytest.raises(
        ParamsError, match=r"head\.kind is knn.* 100 images, 8 each, .*expected logistic, ridge or auto"
    ):
        fit("knn", train, val)
    assert [entry["kind"] for entry in fit("auto", train, val).head.tried] == ["prototype", "ridge", "logistic"]


@pytest.mark.parametrize("missing", [0, 2])
@pytest.mark.parametrize("kind", ["auto", "logistic", "knn"])
def test_a_class_without_training_images_is_an_error_that_names_it(kind, missing):
    whole = simulated(60)
    there = whole.labels != missing
    train = Chunks(whole.x[there], whole.labels[there])
    expected = f"no image of '{CLASSES[missing]}' is in the train split; expected images of every"
    with pytest.raises(SourceError, match=expected):
        fit(kind, train, whole)
