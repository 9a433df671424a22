"""A step of training: forward, backward and update, without waiting for the device, in parts where memory is short."""

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rootstock.training.classifier import Classifier, mixed_precision, precision_on

log = logging.getLogger(__name__)
MAX_GRADIENT_NORM = 1.0  # bounds the first steps after unfreezing (docs/benchmarks.md)


class TrainingStep:
    """Train a model on one mini-batch after the other.

    A mini-batch that does not fit into the device's memory is computed in two, four, ... parts whose gradients add up:
    the same step in expectation (batch norm, where it is trained, sees the parts).

    Args:
        model: in training mode.
        optimiser: of its parameters.
        label_smoothing: of the cross-entropy.
        parts: how many parts a mini-batch begins with.
    """

    def __init__(
        self, model: Classifier, optimiser: torch.optim.Optimizer, label_smoothing: float, parts: int = 1
    ) -> None:
        self.model, self.optimiser, self.label_smoothing, self.parts = model, optimiser, label_smoothing, parts
        self.device = model.head.weight.device
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # float16 has no room for small gradients: they are scaled up (Micikevicius et al. 2018)
        self.scaler = torch.GradScaler(self.device.type, enabled=precision_on(self.device) is torch.float16)

    def __call__(self, batch: Tensor, target: Tensor) -> Tensor:
        """Update the weights by a mini-batch (n, 3, size, size) and its class indices (n,), both on the device.

        Returns:
            The mean loss, a scalar on the device: reading it would wait for the step to end.
        """
        while True:
            try:
                return self._step(batch, target)
            except torch.OutOfMemoryError:
                if self.parts >= len(batch):
                    raise
                self.parts *= 2
                log.warning(
                    "fine_tune: not enough memory for a mini-batch of %d images: computed in %d parts, whose gradients "
                    "add up", len(batch), self.parts,
                )  # fmt: skip
                self.optimiser.zero_grad(set_to_none=True)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _step(self, batch: Tensor, target: Tensor) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for images, labels in zip(batch.chunk(self.parts), target.chunk(self.parts), strict=True):
            with mixed_precision(self.device):
                logits = self.model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
            loss = loss * (len(images) / len(batch))
            self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.trained, MAX_GRADIENT_NORM)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return total
