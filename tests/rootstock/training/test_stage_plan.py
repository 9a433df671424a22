"""`unfreeze: auto` unfreezes deeper as long as validation gains something significant, and resumes as it was."""

import numpy as np
import pytest
import torch

from rootstock.config.params import Finetune, Stage
from rootstock.training import stage_plan, stages as stage_module
from rootstock.training.stage_plan import AUTO_UNFREEZE, Gain
from tests.fine_tuning import TRAIN, stages, start, tune
from tests.rootstock.training.test_checkpoints import StoppedError, stopping_after
from tests.rootstock.training.test_ranks import needs_two_cores


def given(*layers: str) -> tuple[Stage, ...]:
    return tuple(Stage(unfreeze=name, epochs=2, lr=1e-3) for name in layers)


def test_auto_stands_for_one_stage_per_depth_and_others_for_themselves():
    written = given("head", "auto", "stage4")
    planned = stage_plan.planned(Finetune(stages=written), 100)
    assert [stage.unfreeze for stage in planned] == ["head", *AUTO_UNFREEZE, "stage4"]
    assert [stage.epochs for stage in planned] == [2] * 5
    assert stage_plan.entries(written) == [None, 1, 1, 1, None]


@pytest.mark.parametrize(("images", "epochs"), [(1, 5), (278, 5), (1_800, 5), (2_400, 4), (1_000_000, 3)])
def test_auto_is_more_epochs_the_fewer_images_there_are(images, epochs):
    stage = Stage(unfreeze="all", epochs="auto", lr=1e-3)
    assert [one.epochs for one in stage_plan.planned(Finetune(stages=(stage,)), images)] == [epochs]
    assert stage_plan.planned(Finetune(stages=(stage,), batch_size=320), 10 * images)[0].epochs == epochs


def test_a_run_says_how_many_epochs_auto_is(base, tmp_path, caplog):
    with caplog.at_level("INFO"):
        settings = stages(("head", "auto"), ("last_block", 1))
        history = tune(start(base), base, settings, tmp_path / "checkpoint")
    assert len(history) == 6
    assert f"epochs, by the number of training images ({TRAIN}): head 5, last_block 1" in caplog.text


def test_a_gain_is_significant_beyond_the_noise_between_groups_of_images():
    rng = np.random.default_rng(0)
    before = rng.exponential(size=400)
    better, as_good = before - 0.1 + rng.normal(0, 0.5, 400), before + rng.normal(0, 0.5, 400)
    alone = np.arange(400)
    assert stage_plan.gain(before, better, alone).is_significant
    assert not stage_plan.gain(before, as_good, alone).is_significant
    scenes = np.repeat(np.arange(5), 80)  # five witnesses, of which one alone is much better
    lucky = before - np.repeat([0.5, 0.05, 0, 0, -0.05], 80)
    assert not stage_plan.gain(before, lucky, scenes).is_significant


def test_equal_depths_are_followed_by_another_in_at_most_5_percent_of_trials():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 5)
    found = [
        stage_plan.gain(before, before + np.repeat(rng.normal(size=60), 5), groups).is_significant
        for before in rng.exponential(size=(1000, 300))
    ]
    assert np.mean(found) <= 0.07  # the simulation's own error is 0.7 points


@pytest.fixture
def gains(monkeypatch) -> list[bool]:
    """Whether each depth after the first gains something, in the order in which they are looked at."""
    wanted: list[bool] = []
    monkeypatch.setattr(stage_plan, "gain", lambda *_: Gain(1.0, 0.5 if wanted.pop(0) else 1.0, 0.1))
    return wanted


@pytest.mark.parametrize(("of_half", "trained"), [(True, AUTO_UNFREEZE), (False, AUTO_UNFREEZE[:2])])
def test_the_next_depth_is_trained_only_after_a_significant_gain(base, tmp_path, gains, caplog, of_half, trained):
    gains.append(of_half)
    with caplog.at_level("INFO"):
        history = tune(start(base), base, stages(("auto", 1), ("head", 1)), tmp_path / "checkpoint")
    assert [epoch.unfrozen for epoch in history] == [*trained, "head"]
    judged = "significantly lower" if of_half else "not significantly lower"
    assert f"after last_half: validation log loss {0.5 if of_half else 1:.4f}, {judged} than 1.0000" in caplog.text


def test_each_depth_goes_on_from_the_best_weights_so_far(base, tmp_path, monkeypatch, gains):
    gains.append(True)
    begun = []
    train = stage_module.train
    monkeypatch.setattr(
        stage_module, "train", lambda run, state, index: (begun.append((run, state.best)), train(run, state, index))
    )
    seen = []
    optimiser_of = stage_module.optimiser_of

    def looked_at(model, *others):
        if len(seen) < len(begun):  # not when a stage begins anew with half the learning rate
            seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return optimiser_of(model, *others)

    monkeypatch.setattr(stage_module, "optimiser_of", looked_at)
    tune(start(base), base, stages(("auto", 2), lr=0.02), tmp_path / "checkpoint")
    for weights, (_, best) in zip(seen[1:], begun[1:], strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in best.items())


@needs_two_cores
@pytest.mark.slow
def test_several_processes_try_the_depths_of_one(base, tmp_path):
    settings = stages(("auto", 1), ("head", 1), batch_size=16, lr=1e-4)
    expected = tune(start(base), base, settings, tmp_path / "alone")
    found = tune(start(base), base, settings.model_copy(update={"processes": 2}), tmp_path / "together")
    assert [(epoch.stage, epoch.unfrozen) for epoch in found] == [(epoch.stage, epoch.unfrozen) for epoch in expected]


@pytest.mark.parametrize("stop", [TRAIN + 1, 2 * TRAIN + 1])
def test_a_run_that_is_interrupted_after_a_gain_tries_the_next_depth(base, tmp_path, monkeypatch, stop):
    def gain(before, after, groups):
        return Gain(1.0, 0.0 if (before != after).any() else 1.0, 0.1)

    monkeypatch.setattr(stage_plan, "gain", gain)
    settings = stages(("auto", 1), ("head", 1))
    expected = tune(start(base), base, settings, tmp_path / "undisturbed")
    assert [epoch.unfrozen for epoch in expected] == ["last_block", "last_half", "all", "head"]
    with stopping_after(stop), pytest.raises(StoppedError):
        tune(start(base), base, settings, tmp_path / "stopped")
    assert tune(start(base), base, settings, tmp_path / "stopped") == expected


@pytest.mark.parametrize("stop", [TRAIN + 1, 2 * TRAIN + 1])
def test_an_interrupted_run_tries_the_depths_of_an_uninterrupted_one(base, tmp_path, stop):
    settings = stages(("auto", 1), ("head", 1))
    expected = tune(start(base), base, settings, tmp_path / "undisturbed")
    with stopping_after(stop), pytest.raises(StoppedError):
        tune(start(base), base, settings, tmp_path / "stopped")
    assert tune(start(base), base, settings, tmp_path / "stopped") == expected
