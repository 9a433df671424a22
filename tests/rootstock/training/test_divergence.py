"""A training loss that explodes: half the learning rate, once, from the best weights; then the stage ends."""

import math

import pytest
import torch
from torch import Tensor

from rootstock.config.params import Stage
from rootstock.system.errors import ParamsError
from rootstock.training import epochs, finetune, stages as stage_module
from rootstock.training.checkpoints import Epoch
from rootstock.training.divergence import ExplodedError, check_loss, highest_loss
from rootstock.training.step import TrainingStep
from tests.fine_tuning import copied, stages, start, tune

LR = 1e-3
STAGE = Stage(unfreeze="all", epochs=1, lr=LR)


@pytest.fixture
def exploding(monkeypatch):
    """Let steps explode: return a list of (smallest peak learning rate, step from which on, loss)."""
    explosions: list[tuple[float, int, float]] = []
    steps = 0

    class Exploding(TrainingStep):
        def __call__(self, batch: Tensor, target: Tensor, images: int | None = None) -> Tensor:
            nonlocal steps
            steps += 1
            peak = max(group["peak"] for group in self.optimiser.param_groups)
            for lr, after, loss in explosions:
                if peak > lr and steps > after:
                    for parameter in self.trained:
                        parameter.detach().fill_(loss)
                    return torch.tensor(loss, dtype=torch.float64)
            return super().__call__(batch, target, images)

    monkeypatch.setattr(stage_module, "TrainingStep", Exploding)
    return explosions


@pytest.mark.parametrize(("loss", "says"), [(float("nan"), "is NaN or infinite"), (1e3, "has risen to")])
def test_a_loss_that_explodes_goes_on_from_the_best_weights_at_half_the_rate(
    base, tmp_path, caplog, exploding, loss, says
):
    exploding.append((0.6 * LR, 5, loss))  # 72 images in batches of 32: in the second epoch, but not at half the rate
    model = start(base)
    history = tune(model, base, stages(("all", 3), lr=LR), tmp_path / "checkpoint")
    assert [epoch.epoch for epoch in history] == [0, 1, 2]
    assert f"the training loss {says}" in caplog.text
    assert "going on with the best weights so far, at half the learning rate" in caplog.text
    assert all(torch.isfinite(value).all() for value in copied(model).values() if value.is_floating_point())
    assert epochs.best_of(history).val_accuracy > 0.3


def test_before_any_epoch_has_ended_it_goes_back_to_where_it_started(base, tmp_path, exploding):
    exploding.append((0.6 * LR, 0, float("nan")))
    history = tune(start(base), base, stages(("all", 2), lr=LR), tmp_path / "checkpoint")
    slower = tune(start(base), base, stages(("all", 2), lr=LR / 2), tmp_path / "other")
    assert [(e.train_loss, e.val_loss) for e in history] == [(e.train_loss, e.val_loss) for e in slower]


def test_a_second_explosion_ends_the_stage_with_the_best_weights_and_the_next_stage_goes_on(
    base, tmp_path, caplog, exploding
):
    exploding += [(0.4 * LR, 5, float("nan"))]
    settings = stages(("all", 3), lr=LR)
    settings = settings.model_copy(update={"stages": (*settings.stages, Stage(unfreeze="all", epochs=1, lr=LR / 10))})
    history = tune(start(base), base, settings, tmp_path / "checkpoint")
    assert [(epoch.stage, epoch.epoch) for epoch in history] == [(0, 0), (1, 0)]
    assert "again: the stage ends with the best weights so far" in caplog.text


def test_the_stage_after_a_second_explosion_begins_at_its_beginning_whenever_checkpoints_were_written(
    base, tmp_path, exploding
):
    """A checkpoint within the epoch that exploded says nothing about the next stage."""
    settings = stages(("all", 3), lr=LR)
    after = Stage(unfreeze="last_block", epochs=1, lr=LR / 10)
    settings = settings.model_copy(update={"stages": (*settings.stages, after)})
    found = []
    for minutes, before in ((60.0, 0), (0.0, 11)):  # the first run has eleven steps
        exploding[:] = [(0.6 * LR, before + 5, float("nan")), (0.4 * LR, before + 7, float("nan"))]
        often = settings.model_copy(update={"checkpoint_minutes": minutes})
        found.append(tune(start(base), base, often, tmp_path / f"{minutes}"))
    assert found[0] == found[1] and [(epoch.stage, epoch.epoch) for epoch in found[0]] == [(0, 0), (1, 0)]


@pytest.mark.parametrize("unfreeze", ["all", "auto"])
def test_a_run_that_ended_so_is_complete_when_it_is_started_again(base, tmp_path, exploding, unfreeze):
    exploding += [(0.4 * LR, 5, float("nan"))]
    settings = stages((unfreeze, 2), lr=LR)
    history = tune(start(base), base, settings, tmp_path / "checkpoint")
    trained = start(base)
    steps: list[int] = []
    trained.register_forward_hook(lambda module, given, logits: steps.append(module.training))
    assert tune(trained, base, settings, tmp_path / "checkpoint") == history
    assert not any(steps)


def test_two_explosions_before_any_epoch_has_ended_are_an_error_that_names_the_learning_rate(base, tmp_path):
    model = start(base)
    with torch.no_grad():
        model.head.bias[0] = float("inf")
    with pytest.raises(ParamsError, match=r"params.yaml: lr is 0.0005 in the stage that unfreezes all.*a lower lr"):
        tune(model, base, stages(("all", 1), lr=LR), tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_a_run_that_was_interrupted_resumes_at_half_the_rate(base, tmp_path, exploding, monkeypatch):
    exploding.append((0.6 * LR, 2, float("nan")))
    whole = tune(start(base), base, stages(("all", 3), lr=LR), tmp_path / "whole")
    saves = 0
    save = finetune.checkpoints.save

    def save_twice(*given):
        nonlocal saves
        save(*given)
        saves += 1
        if saves == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(finetune.checkpoints, "save", save_twice)
    with pytest.raises(KeyboardInterrupt):
        tune(start(base), base, stages(("all", 3), lr=LR), tmp_path / "checkpoint")
    exploding.clear()  # it does not explode at half the rate; at the whole rate, results would differ
    monkeypatch.setattr(finetune.checkpoints, "save", save)
    resumed = tune(start(base), base, stages(("all", 3), lr=LR), tmp_path / "checkpoint")
    assert resumed == whole


@pytest.mark.parametrize(("before", "highest"), [(0.1, 23.03), (5.0, 50.0)])
def test_a_loss_explodes_if_it_is_ten_times_that_of_guessing_and_of_the_epoch_before(before, highest):
    assert highest_loss([Epoch(0, "all", 0, before, 1.0, 0.5)], 10) == pytest.approx(highest, abs=0.01)
    assert highest_loss([], 10) == math.inf  # a head that is sure and wrong at the start is none
    check_loss(torch.tensor(220.0), 10, 23.03, STAGE, 1, 0)
    with pytest.raises(ExplodedError, match=r"after 1 batches of epoch 1 the training loss has risen to 24\.0"):
        check_loss(torch.tensor(240.0), 10, 23.03, STAGE, 1, 0)
