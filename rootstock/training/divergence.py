"""A training loss that explodes: how it is noticed."""

import math
from collections.abc import Sequence

from torch import Tensor

from rootstock.config import params
from rootstock.training.checkpoints import Epoch

EXPLODED = 10.0  # times the loss of guessing, or of the epoch before


class ExplodedError(Exception):
    """The training loss is not finite, or far above what it was."""


def highest_loss(history: Sequence[Epoch], classes: int) -> float:
    """Return the mean training loss from which on it has exploded.

    In the first epoch only NaN and infinity count: a head whose features the first steps change may be sure and wrong.
    """
    return EXPLODED * max(math.log(classes), history[-1].train_loss) if history else math.inf


def check_loss(total: Tensor, images: int, highest: float, stage: params.Stage, batches: int, epoch: int) -> None:
    """Stop where the training has diverged.

    Args:
        total: sum of the losses of the epoch's images so far.
        images: how many these are.
        highest: that the mean may be.
        stage: for the message.
        batches: how many these are, for the message.
        epoch: counted from 0, for the message.

    Raises:
        ExplodedError: the mean is NaN, infinite or higher.
    """
    mean = total.item() / images
    if not math.isfinite(mean) or mean > highest:
        what = f"has risen to {mean:.1f}" if math.isfinite(mean) else "is NaN or infinite"
        raise ExplodedError(
            f"params.yaml: lr is {stage.lr:g} in the stage that unfreezes {stage.name}, and after {batches} "
            f"batches of epoch {epoch + 1} the training loss {what}"
        )
