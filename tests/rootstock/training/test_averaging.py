"""Averages of weights: over training steps, over the best epochs, and between the linear probe and the fine-tuned."""

import json
import logging

import numpy as np
import pytest
import torch

from rootstock.backbones import backbones
from rootstock.config.params import Averaging
from rootstock.dataset import shards
from rootstock.system import progress
from rootstock.training import averaging, epoch, epochs, finetune
from rootstock.training.averaging import choose_average
from rootstock.training.checkpoints import Epoch, Saver, TrainingState
from rootstock.training.classifier import Classifier
from rootstock.training.course import AVERAGES, DESCRIPTION, load_course, save_course
from rootstock.training.epoch import Run
from rootstock.training.moving_average import MovingAverage
from rootstock.training.split_images import Batches, SplitImages
from tests.fine_tuning import changed, copied, stages, start, tuned
from tests.rootstock.training.test_checkpoints import StoppedError, stopping_after
from tests.small_dataset import small_backbone


def validated(model: Classifier, small, base) -> tuple[float, float]:
    val, transform = SplitImages(small.split("val"), small.images), backbones.load(small_backbone(base)).transform
    with shards.Reader(small.images) as reader:
        return epoch.validate(model, Batches(val, reader, transform, 32, torch.device("cpu")), None)


def averaged(epochs: int, lr: float = 5e-3, **given) -> finetune.params.Finetune:
    return stages(("all", epochs), lr=lr, averaging=Averaging(**given))


# After the last stage


def test_by_default_nothing_is_averaged(base, tmp_path):
    assert tuned(start(base), base, stages(("all", 2)), tmp_path / "checkpoint").averages == []


def test_the_network_ends_with_the_weights_that_are_best_on_validation(base, small, tmp_path):
    model = start(base)
    course = tuned(model, base, averaged(4, soup=3, interpolation=3), tmp_path / "checkpoint")
    [chosen] = [one for one in course.averages if one.chosen]
    assert chosen.rank == max(one.rank for one in course.averages if one.share > 0)
    assert chosen.val_accuracy == course.val_accuracy >= epochs.best_of(course.history).val_accuracy
    assert validated(model, small, base) == pytest.approx((chosen.val_loss, chosen.val_accuracy), rel=1e-4)


def test_the_curve_leads_from_the_linear_probe_to_the_best_epoch(base, small, tmp_path):
    course = tuned(start(base), base, averaged(3, interpolation=3), tmp_path / "checkpoint")
    best, *curve = course.averages
    assert [one.share for one in curve] == [0, 0.25, 0.5, 0.75]
    of_probe = validated(start(base), small, base)
    assert (curve[0].val_loss, curve[0].val_accuracy) == pytest.approx(of_probe, rel=1e-4)
    last = epochs.best_of(course.history)
    assert (best.share, best.val_loss, best.val_accuracy) == (1, last.val_loss, last.val_accuracy)


@pytest.fixture
def loss_of(monkeypatch):
    """Let the validation loss be a function of the first bias of the head alone."""

    def patch(loss) -> None:
        monkeypatch.setattr(averaging, "validate", lambda model, *_: (loss(model.head.bias[0].item()), 0.5))

    return patch


def after_training(model: Classifier, biases: list[float], loss) -> TrainingState:
    """Return the state after epochs that left the head's bias at these values, the best first."""
    state = TrainingState(history=[Epoch(0, "all", n, 1.0, loss(bias), 0.5) for n, bias in enumerate(biases)])
    for number, bias in enumerate(biases):
        with torch.no_grad():
            model.head.bias.fill_(bias)
        state.kept[number] = copied(model)
    return state


def run_of(model: Classifier, **given) -> Run:
    return Run(model, None, None, averaged(1, **given), (), 0, None, None, Saver(lambda: None), progress.silent)  # type: ignore[arg-type]


def test_an_epoch_enters_the_soup_only_if_the_mean_validates_no_worse(base, loss_of):
    model = start(base)

    def loss(bias: float) -> float:
        return (bias - 1.0) ** 2

    loss_of(loss)
    state = after_training(model, [1.5, 0.4, 4.0, 0.8], loss)
    tried = choose_average(run_of(model, soup=4), state, {})
    assert [one.epochs for one in tried] == [1, 2, 3, 3]  # the third makes it worse, the fourth no longer
    assert [round(one.val_loss, 4) for one in tried] == [0.25, 0.0025, 0.9344, 0.01]
    assert [one.chosen for one in tried] == [False, True, False, False]
    assert model.head.bias[0].item() == pytest.approx((1.5 + 0.4) / 2)


def test_the_linear_probe_itself_is_shown_but_not_chosen(base, loss_of):
    model = start(base)
    with torch.no_grad():
        model.head.bias.fill_(0.0)
    probe = copied(model)
    loss_of(abs)
    state = after_training(model, [1.0], abs)
    tried = choose_average(run_of(model, interpolation=4), state, probe)
    assert min(tried, key=lambda one: one.val_loss).share == 0
    assert [one.share for one in tried if one.chosen] == [0.2] and model.head.bias[0].item() == pytest.approx(0.2)


def test_weights_are_not_averaged_where_batch_norm_was_trained(base, tmp_path, caplog):
    model = start(base)
    model.frozen_statistics = False
    with caplog.at_level(logging.INFO):
        assert tuned(model, base, averaged(2, soup=2), tmp_path / "checkpoint").averages == []
    assert "weights are not averaged: the statistics of batch norm would not fit them" in caplog.text


def test_averages_are_read_back_and_an_earlier_version_had_none(base, tmp_path):
    course = tuned(model := start(base), base, averaged(2, soup=2, interpolation=1), tmp_path / "checkpoint")
    save_course(model, course, tmp_path / "finetuned")
    assert load_course(tmp_path / "finetuned") == course
    (tmp_path / "finetuned" / AVERAGES).unlink()
    described = json.loads((tmp_path / "finetuned" / DESCRIPTION).read_text())
    del described["digests"][AVERAGES]
    (tmp_path / "finetuned" / DESCRIPTION).write_text(json.dumps(described))
    assert load_course(tmp_path / "finetuned").averages == []


# Over training steps


def test_a_moving_average_forgets_the_first_weights_quickly_and_later_ones_slowly():
    weights, decay = torch.zeros(2), 0.5
    average = MovingAverage([weights], decay)
    expected = np.zeros(2)
    for step in range(1, 9):
        weights.add_(1.0)
        average.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * step
    assert average.values[0].numpy() == pytest.approx(expected)
    with average.in_place():
        assert weights.numpy() == pytest.approx(expected)
    assert weights.tolist() == [8.0, 8.0]


def test_the_average_is_validated_and_kept_while_training_goes_on_with_the_weights(base, small, tmp_path):
    plain, model = start(base), start(base)
    expected = tuned(plain, base, stages(("all", 1), lr=5e-3), tmp_path / "plain").history
    found = tuned(model, base, averaged(1, ema=0.9), tmp_path / "averaged").history
    assert found[0].train_loss == expected[0].train_loss and found[0].val_loss != expected[0].val_loss
    assert validated(model, small, base) == pytest.approx((found[0].val_loss, found[0].val_accuracy), rel=1e-4)
    assert changed(copied(plain), model)


@pytest.mark.parametrize(("minutes", "stop"), [(5.0, 150), (0.0, 110)])
def test_an_interrupted_run_has_the_averages_of_an_uninterrupted_one(base, tmp_path, minutes, stop):
    settings = averaged(3, ema=0.9, soup=2, interpolation=1).model_copy(update={"checkpoint_minutes": minutes})
    expected = tuned(undisturbed := start(base), base, settings, tmp_path / "undisturbed")
    with stopping_after(stop), pytest.raises(StoppedError):
        tuned(start(base), base, settings, tmp_path / "stopped")
    assert tuned(resumed := start(base), base, settings, tmp_path / "stopped") == expected
    assert not changed(copied(undisturbed), resumed)
