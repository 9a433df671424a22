"""A training loss that explodes: how it is noticed."""

import math

from torch import Tensor

from rootstock.config import params

EXPLODED = 10.0  # times the loss of guessing


class ExplodedError(Exception):
    """The training loss is not finite, or far above that of guessing."""


def check_loss(total: Tensor, images: int, classes: int, stage: params.Stage, batches: int, epoch: int) -> None:
    """Stop where the training has diverged.

    Args:
        total: sum of the losses of the epoch's images so far.
        images: how many these are.
        classes: how many there are; guessing has a loss of log(classes).
        stage: for the message.
        batches: how many these are, for the message.
        epoch: counted from 0, for the message.

    Raises:
        ExplodedError: the mean is NaN, infinite or EXPLODED times that of guessing.
    """
    mean = total.item() / images
    if not math.isfinite(mean) or mean > EXPLODED * max(math.log(classes), 1.0):
        what = f"has risen to {mean:.1f}" if math.isfinite(mean) else "is NaN or infinite"
        raise ExplodedError(
            f"params.yaml: lr is {stage.lr:g} in the stage that unfreezes {stage.unfreeze}, and after {batches} "
            f"batches of epoch {epoch + 1} the training loss {what}"
        )
