"""Epochs: which one is best, the history of all, and the warnings where training ends at a limit."""

import pandas as pd
import pytest

from rootstock.training import epochs
from rootstock.training.checkpoints import Epoch
from rootstock.training.course import as_table
from tests.fine_tuning import stages, start, tune


def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss_then_the_lowest_number():
    def epoch(number: int, accuracy: float, loss: float) -> Epoch:
        return Epoch(0, "all", number, 0.0, loss, accuracy)

    assert (
        epochs.best_of([epoch(0, 0.9, 0.1), epoch(1, 0.95, 0.5), epoch(2, 0.95, 0.4), epoch(3, 0.95, 0.4)]).epoch == 2
    )


def test_the_history_has_one_row_per_epoch(base, tmp_path):
    history = tune(start(base), base, stages(("head", 1), ("all", 2)), tmp_path / "checkpoint")
    as_table(history, Epoch).to_parquet(tmp_path / "history.parquet", index=False)
    frame = pd.read_parquet(tmp_path / "history.parquet")
    assert list(zip(frame["stage"], frame["unfrozen"], frame["epoch"], strict=True)) == [
        (0, "head", 0), (1, "all", 0), (1, "all", 1),
    ]  # fmt: skip
    assert frame["val_accuracy"].between(0, 1).all() and (frame["train_loss"] > 0).all()


def epochs_with(*losses: float) -> list[Epoch]:
    """Return epochs of one stage; the one with the lowest loss is the most accurate."""
    return [Epoch(0, "all", number, loss, loss, 1 - loss) for number, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ((0.2, 0.3, 0.4), "try a lower learning rate"),
        ((0.4, 0.3, 0.2), "try more epochs"),
        ((0.4, 0.21, 0.2), None),  # the rate has run out, and the loss stands
        ((0.4, 0.2, 0.3), None),
        ((0.2, 0.3), None),
        ((), None),
    ],
)
def test_a_best_epoch_that_is_the_first_or_still_improving_causes_a_warning(losses, says):
    found = epochs.warnings(epochs_with(*losses))
    assert len(found) == (says is not None)
    assert all(says in warning for warning in found)


@pytest.mark.parametrize(
    ("losses", "patience", "stalled"),
    [
        ((0.4, 0.3, 0.35, 0.36), 2, True),
        ((0.4, 0.3, 0.35, 0.29), 2, False),
        ((0.4, 0.3, 0.35), 2, False),  # one epoch without improvement
        ((0.4, 0.5), 2, False),  # nothing to compare with
        ((0.4, 0.5, 0.6), 2, True),
        ((0.4, 0.5, 0.6), 0, False),
    ],
)
def test_a_stage_has_stalled_once_validation_does_not_improve_for_as_many_epochs_as_its_patience(
    losses, patience, stalled
):
    assert epochs.has_stalled(epochs_with(*losses), 0, patience) == stalled
    assert not epochs.has_stalled(epochs_with(*losses), 1, patience)  # another stage


def test_better_accuracy_at_a_worse_loss_is_an_improvement():
    before, after = Epoch(0, "all", 0, 0.1, 0.2, 0.8), Epoch(0, "all", 1, 0.1, 0.3, 0.9)
    assert not epochs.has_stalled([before, after], 0, 1)


def test_a_stage_that_has_stalled_ends_also_after_an_interruption(base, tmp_path):
    settings = stages(("last_block", 6), ("head", 1), lr=1e-30, patience=2)  # learns nothing
    history = tune(start(base), base, settings, tmp_path / "checkpoint")
    assert [epoch.stage for epoch in history].count(0) < 6
    assert history[-1].stage == 1
    assert tune(start(base), base, settings, tmp_path / "checkpoint") == history
