"""What the stages of params.yaml come to: which depths are tried, and for how many epochs.

`unfreeze: auto` tries one depth after the other, the cheapest first: each goes on from the best weights of the one
before, and the next is tried only if a depth lowered the log loss on validation significantly. `epochs: auto` goes by
the number of images, as the length of training in BiT-HyperRule (Kolesnikov et al. 2020).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rootstock.config import params
from rootstock.training.paired_losses import standard_error

AUTO_UNFREEZE = ("last_block", "last_half", "all")
SIGNIFICANT = 1.645  # standard errors: one-sided, at 5 %
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 280, 3, 5  # of a stage (docs/benchmarks.md)


class PlannedStage(params.Stage):
    """A stage of one depth, with its number of epochs."""

    epochs: int


@dataclass(frozen=True)
class Gain:
    """How much a depth lowered the mean log loss of the validation images, and the standard error of that."""

    before: float
    after: float
    error: float

    @property
    def is_significant(self) -> bool:
        """Whether the next depth is worth trying."""
        return self.before - self.after > SIGNIFICANT * self.error

    def __str__(self) -> str:
        """Describe the losses, and what the difference is worth."""
        judged = "significantly lower" if self.is_significant else "not significantly lower"
        return f"validation log loss {self.after:.4f}, {judged} than {self.before:.4f}"


def planned(settings: params.Finetune, images: int) -> tuple[PlannedStage, ...]:
    """Return the stages to train, at most: one per depth in place of `auto`.

    Args:
        settings: the section `finetune` of params.yaml.
        images: how many there are to train on.
    """
    return tuple(
        PlannedStage(unfreeze=depth, epochs=_epochs(stage, settings.batch_size, images), lr=stage.lr)
        for stage in settings.stages
        for depth in depths(stage)
    )


def _epochs(stage: params.Stage, batch_size: int, images: int) -> int:
    if isinstance(stage.epochs, int):
        return stage.epochs
    return min(max(FEWEST_EPOCHS, round(STEPS * batch_size / images)), MOST_EPOCHS)


def entries(stages: tuple[params.Stage, ...]) -> list[int | None]:
    """Return for each planned stage the number of its `auto` in params.yaml, or None."""
    return [
        index if stage.unfreeze == params.AUTO else None for index, stage in enumerate(stages) for _ in depths(stage)
    ]


def depths(stage: params.Stage) -> tuple[str | tuple[str, ...], ...]:
    """Return what a stage unfreezes, or in turn for `auto`."""
    return AUTO_UNFREEZE if stage.unfreeze == params.AUTO else (stage.unfreeze,)


def gain(before: NDArray[np.float64], after: NDArray[np.float64], groups: NDArray[np.int64]) -> Gain:
    """Compare the log losses of the validation images (n,) of two depths, groups of images (n,) as a whole."""
    return Gain(float(before.mean()), float(after.mean()), standard_error(before - after, groups))
