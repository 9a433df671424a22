"""What the stages of params.yaml come to: `unfreeze: auto` tries one depth after the other, the cheapest first.

Each depth goes on from the best weights of the one before, and the next is tried only if a depth lowered the log loss
on validation significantly.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rootstock.config import params
from rootstock.training.paired_losses import standard_error

DEPTHS = ("last_block", "last_half", "all")
SIGNIFICANT = 1.645  # standard errors: one-sided, at 5 %


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


def expanded(stages: tuple[params.Stage, ...]) -> tuple[params.Stage, ...]:
    """Return the stages to train, at most: one per depth in place of `auto`."""
    return tuple(stage.model_copy(update={"unfreeze": depth}) for stage in stages for depth in _depths(stage))


def entries(stages: tuple[params.Stage, ...]) -> list[int | None]:
    """Return for each expanded stage the number of its `auto` in params.yaml, or None."""
    return [
        index if stage.unfreeze == params.AUTO_UNFREEZE else None
        for index, stage in enumerate(stages)
        for _ in _depths(stage)
    ]


def _depths(stage: params.Stage) -> tuple[str | tuple[str, ...], ...]:
    return DEPTHS if stage.unfreeze == params.AUTO_UNFREEZE else (stage.unfreeze,)


def gain(before: NDArray[np.float64], after: NDArray[np.float64], groups: NDArray[np.int64]) -> Gain:
    """Compare the log losses of the validation images (n,) of two depths, groups of images (n,) as a whole."""
    return Gain(float(before.mean()), float(after.mean()), standard_error(before - after, groups))
