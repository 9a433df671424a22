"""`lr: auto`: a range test before a stage, which leaves no trace in the weights."""

import numpy as np
import pytest
import torch

from rootstock.config.params import Stage
from rootstock.training import learning_rate, stages as stages_module
from rootstock.training.checkpoints import RatePoint
from tests.fine_tuning import changed, copied, stages, start, tuned
from tests.rootstock.training.test_checkpoints import StoppedError, stopping_after


def automatic(*given: tuple[str, int], **others):
    settings = stages(*given, **others)
    return settings.model_copy(
        update={"stages": tuple(stage.model_copy(update={"lr": "auto"}) for stage in settings.stages)}
    )


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(learning_rate, "STEPS", 12)


def test_a_fifth_of_the_rate_at_which_the_loss_has_risen_is_chosen():
    points = [RatePoint(0, rate, loss) for rate, loss in ((1e-4, 1.0), (1e-3, 0.8), (1e-2, 0.9), (1e-1, 1.3))]
    assert learning_rate.chosen(points) == pytest.approx(2e-2)


def test_a_stage_is_trained_with_the_rate_that_was_found(base, tmp_path):
    course = tuned(found := start(base), base, automatic(("last_block", 1)), tmp_path / "found")
    rates = [point.lr for point in course.rates]
    assert rates[0] == pytest.approx(1e-5) and max(rates) <= 0.1 and (np.diff(rates) > 0).all()
    assert rates[1] / rates[0] == pytest.approx(1e4 ** (1 / 11))
    lr = learning_rate.chosen(course.rates)
    again = tuned(given := start(base), base, stages(("last_block", 1), lr=lr), tmp_path / "given")
    assert again.history == course.history and again.rates == []
    assert not changed(copied(found), given)


def test_a_range_test_ends_where_the_loss_has_risen(base, tmp_path, monkeypatch):
    monkeypatch.setattr(learning_rate, "HIGHEST", 1e6)
    course = tuned(start(base), base, automatic(("all", 1)), tmp_path / "checkpoint")
    losses = [point.loss for point in course.rates]
    assert len(losses) < learning_rate.STEPS
    assert not losses[-1] <= learning_rate.RISEN * min(losses[:-1])


def test_each_stage_has_a_test_of_its_own_and_an_interrupted_run_does_not_repeat_it(base, tmp_path, monkeypatch):
    settings = automatic(("last_block", 2), ("all", 2), batch_size=16, checkpoint_minutes=0)
    expected = tuned(undisturbed := start(base), base, settings, tmp_path / "undisturbed")
    assert {point.stage for point in expected.rates} == {0, 1}
    with stopping_after(200), pytest.raises(StoppedError):
        tuned(start(base), base, settings, tmp_path / "stopped")
    tested, find = [], learning_rate.find
    monkeypatch.setattr(
        stages_module.learning_rate,
        "find",
        lambda run, stage, *rest: (tested.append(stage), find(run, stage, *rest))[1],
    )
    assert tuned(resumed := start(base), base, settings, tmp_path / "stopped") == expected
    assert tested == [] and not changed(copied(undisturbed), resumed)


def test_trained_statistics_of_batch_norm_are_put_back_too(base, tmp_path):
    found, given = start(base), start(base)
    found.frozen_statistics = given.frozen_statistics = False
    course = tuned(found, base, automatic(("all", 1)), tmp_path / "found")
    tuned(given, base, stages(("all", 1), lr=learning_rate.chosen(course.rates)), tmp_path / "given")
    assert {name for name in changed(copied(found), given) if "num_batches" not in name} == set()


@pytest.mark.parametrize("lr", ["auto", 0.5])
def test_a_rate_is_a_number_or_auto(lr):
    assert Stage(unfreeze="all", epochs=1, lr=lr).lr == lr
    with pytest.raises(ValueError, match="lr"):
        Stage(unfreeze="all", epochs=1, lr="automatic")


def test_random_numbers_of_training_do_not_depend_on_the_test(base, tmp_path):
    torch.manual_seed(7)
    one = tuned(start(base, "squeezenet1_1"), base, automatic(("last_2_blocks", 1)), tmp_path / "one")
    torch.manual_seed(8)
    assert tuned(start(base, "squeezenet1_1"), base, automatic(("last_2_blocks", 1)), tmp_path / "two") == one
