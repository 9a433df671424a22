"""An exponential moving average of weights over training steps (Polyak and Juditsky 1992)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """Average weights over training steps.

    The decay rises with the number of steps, as the average would otherwise long hold the weights that it began with:
    min(decay, (1 + n) / (10 + n)), as in TensorFlow and timm.

    Args:
        trained: the weights, which training changes in place.
        decay: of the average in a step, 0..1.
        values: the average so far, of the steps before; by default the weights as they are.
    """

    def __init__(self, trained: Sequence[Tensor], decay: float, values: Sequence[Tensor] | None = None) -> None:
        self.trained, self.decay = [weights.detach() for weights in trained], decay
        self.values = [weights.clone() for weights in (self.trained if values is None else values)]

    def update(self, steps: int) -> None:
        """Include the weights after a step, of so many in all."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(decay)(self.values, self.trained, torch.tensor(steps))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the average be the weights for the time of a block."""
        before = [weights.clone() for weights in self.trained]
        torch._foreach_copy_(self.trained, self.values)
        try:
            yield
        finally:
            torch._foreach_copy_(self.trained, before)
