"""Averages of weights, tried on validation after the last stage; a model of the best one is no slower than any other.

A greedy soup is the mean of the best epochs, added one after the other where the mean validates no worse (Wortsman et
al. 2022, Model soups). WiSE-FT lies between the linear probe and what was fine-tuned (Wortsman et al. 2022, Robust
fine-tuning of zero-shot models).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rootstock.backbones import state_dicts
from rootstock.system.phrases import percent
from rootstock.training import adapters
from rootstock.training.checkpoints import TrainingState
from rootstock.training.epoch import Run, validate

log = logging.getLogger(__name__)
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Average:
    """Weights that were tried on validation: one row of averages.parquet.

    Args:
        kind: a soup of epochs, beginning with the best one alone, or an interpolation from the linear probe.
        epochs: of the soup.
        share: of the fine-tuned weights in the interpolation; 0 is the linear probe.
        val_loss: mean log loss.
        val_accuracy: of the validation images.
        chosen: whether these are the weights that fine-tuning ends with.
    """

    kind: Literal["soup", "interpolation"]
    epochs: int
    share: float
    val_loss: float
    val_accuracy: float
    chosen: bool = False

    @property
    def rank(self) -> tuple[float, float]:
        """Return what the best has most of: as the best epoch, the highest accuracy, then the lowest log loss."""
        return self.val_accuracy, -self.val_loss

    def __str__(self) -> str:
        """Describe the weights."""
        tuned = "the best epoch" if self.epochs == 1 else f"the mean of {self.epochs} epochs"
        return tuned if self.share == 1 else f"{self.share:.0%} of the way from the linear probe to {tuned}"


def choose_average(run: Run, state: TrainingState, probe: Weights) -> list[Average]:
    """Try the averages that the settings ask for, and leave the model with the weights that are best on validation.

    Args:
        run: the model, the validation images and the settings.
        state: of a completed training, with the weights of its best epochs.
        probe: the weights before training.

    Returns:
        All that was tried, the best epoch first; empty if the settings ask for none.
    """
    settings = run.settings.averaging
    if not (settings.interpolation or settings.soup > 1) or not state.kept:
        return []
    if not run.model.frozen_statistics:
        log.info("fine_tune: weights are not averaged: the statistics of batch norm would not fit them")
        return []
    if adapters.parameters(run.model.backbone):
        log.info("fine_tune: weights are not averaged: the mean of LoRA's factors is not that of their products")
        return []
    (number, soup), *others = state.kept.items()
    best = state.history[number]
    tried = [accepted := Average("soup", 1, 1.0, best.val_loss, best.val_accuracy)]
    for _, weights in others[: max(0, settings.soup - 1)]:
        mean = _between(soup, weights, 1 / (accepted.epochs + 1))
        tried.append(_measured(run, mean, "soup", accepted.epochs + 1, 1.0))
        if tried[-1].rank >= accepted.rank:
            soup, accepted = mean, tried[-1]
    points = settings.interpolation
    tried += [
        _measured(run, _between(probe, soup, share), "interpolation", accepted.epochs, share)
        for share in (point / (points + 1) for point in range(points + 1 if points else 0))
    ]
    best_of_all = max([accepted, *(one for one in tried if 0 < one.share < 1)], key=lambda one: one.rank)
    state_dicts.copy_state(run.model, _between(probe, soup, best_of_all.share))
    log.info("fine_tune: %s: validation accuracy %.1f %%", best_of_all, 100 * best_of_all.val_accuracy)
    return [replace(one, chosen=one is best_of_all) for one in tried]


def _measured(run: Run, weights: Weights, kind: Literal["soup", "interpolation"], epochs: int, share: float) -> Average:
    state_dicts.copy_state(run.model, weights)
    loss, accuracy = validate(run.model, run.val_batches, run.class_weights)
    return Average(kind, epochs, share, loss, accuracy)


def _between(low: Weights, high: Weights, share: float) -> dict[str, Tensor]:
    """Return weights between two, at `share` of the way; what is no float is that of the second."""
    if share == 1:
        return dict(high)
    return {
        name: torch.lerp(low[name], value, share) if value.is_floating_point() else value
        for name, value in high.items()
    }


def chosen_of(averages: Sequence[Average]) -> Average | None:
    """Return the weights that fine-tuning ended with; None if no average was tried."""
    return next((one for one in averages if one.chosen), None)


def describe(averages: Sequence[Average]) -> str:
    """Describe which weights were kept, and what that changed on validation; "" if no average was tried."""
    if not (chosen := chosen_of(averages)):
        return ""
    best, *others = averages
    return (
        f"{len(others)} averages of weights were tried on validation. Kept: {chosen}, accuracy "
        f"{percent(chosen.val_accuracy)}, log loss {chosen.val_loss:.3f} (the best epoch: "
        f"{percent(best.val_accuracy)}, {best.val_loss:.3f})."
    )
