"""A step of training: forward, backward and update, without waiting for the device, in parts where memory is short.

On a GPU the step is captured as a CUDA graph, and replayed (docs/benchmarks.md).
"""

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rootstock.config import params
from rootstock.training import targets
from rootstock.training.checkpoints import TrainingState
from rootstock.training.classifier import Classifier, filled, mixed_precision, precision_on
from rootstock.training.division import TrainedPart
from rootstock.training.mixing import Mixing
from rootstock.training.moving_average import MovingAverage
from rootstock.training.ranks import ALONE, Ranks
from rootstock.training.step_graphs import StepGraphs

log = logging.getLogger(__name__)
MAX_GRADIENT_NORM = 1.0  # bounds the first steps after unfreezing (docs/benchmarks.md)


class TrainingStep:
    """Train a model on one mini-batch after the other.

    A mini-batch that does not fit into the device's memory is computed in two, four, ... parts whose gradients add up:
    the same step in expectation (batch norm, where it is trained, sees the parts).

    Args:
        model: in training mode; or its trained part, which is given activations in place of images.
        optimiser: of its parameters, each group with its `peak` learning rate.
        settings: the section `finetune` of params.yaml (batch_size, label_smoothing).
        parts: how many parts a mini-batch begins with.
        class_weights: of classes (k,), averaging to 1 over the training images; None for equal ones.
        ranks: the processes that each compute a share of every mini-batch, with gradients of the whole.
    """

    def __init__(
        self, model: Classifier | TrainedPart, optimiser: torch.optim.Optimizer, settings: params.Finetune,
        parts: int = 1, ranks: Ranks = ALONE, class_weights: NDArray[np.float32] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.optimiser, self.parts, self.ranks = model, optimiser, parts, ranks
        self.label_smoothing, self.batch_size = settings.label_smoothing, ranks.largest_share(settings.batch_size)
        alone = ranks.size == 1
        self.network = model if alone else DistributedDataParallel(model, forward_sync_buffers=False)
        self.device, self.multi_label = model.head.weight.device, model.head.multi_label
        self.class_weights = None if class_weights is None else torch.from_numpy(class_weights).to(self.device)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # float16 has no room for small gradients: they are scaled up (Micikevicius et al. 2018)
        self.scaler = torch.GradScaler(self.device.type, enabled=precision_on(self.device) is torch.float16)
        # In a graph, neither can the scaler look at the gradients on the CPU nor one process wait for another.
        graphs = self.device.type == "cuda" and not self.scaler.is_enabled() and alone
        self.graphs = StepGraphs(self._step) if graphs else None
        self._is_updating = False
        self._share_rates()
        self.mixing = Mixing(settings.regularization, len(model.head.bias))
        self.average = MovingAverage(self.trained, settings.averaging.ema) if settings.averaging.ema else None

    def keep_in(self, state: TrainingState) -> None:
        """Let a checkpoint have what the next step needs besides the model's weights."""
        state.optimiser, state.scaler = self.optimiser.state_dict(), self.scaler.state_dict()
        state.average = self.average.values if self.average else None

    def resume(self, state: TrainingState) -> None:
        """Go on from a checkpoint."""
        self.optimiser.load_state_dict(state.optimiser or {})
        self._share_rates()
        self.scaler.load_state_dict(state.scaler)
        if self.average and state.average:
            self.average = MovingAverage(self.trained, self.average.decay, state.average)

    def _share_rates(self) -> None:
        """Let all groups read their learning rates from one tensor on a GPU, so that a CUDA graph may hold them.

        A checkpoint may come from another kind of device.
        """
        on_gpu, groups = self.device.type == "cuda", self.optimiser.param_groups
        self._peaks = torch.tensor([group["peak"] for group in groups], dtype=torch.float32, device=self.device)
        self._rates = self._peaks.clone()
        for group, rate in zip(groups, self._rates if on_gpu else self._rates.tolist(), strict=True):
            group["lr"], group["capturable"] = rate, on_gpu

    def set_learning_rate(self, share: float) -> None:
        """Set the learning rate of each group to a share of its peak."""
        if self.device.type == "cuda":
            torch.mul(self._peaks, share, out=self._rates)
            return
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * share

    def __call__(self, batch: Tensor, target: Tensor, images: int | None = None) -> Tensor:
        """Update the weights by a mini-batch (n, 3, size, size) and its target (targets.py), both on the device.

        Args:
            batch: or this process's share of it.
            target: class indices (n,), or of any number of classes (n, k + 1).
            images: of the whole mini-batch, if several processes share it.

        Returns:
            The mean loss, a scalar on the device: reading it would wait for the step to end. Where processes share the
            mini-batch, the mean of theirs is that of the whole.
        """
        if self.mixing:
            batch, target = self.mixing(batch, target)
        if self.model.frozen_statistics:  # else the copies would count in the statistics
            batch, few = filled(batch, self.batch_size), len(batch)
            target = targets.padded(target, len(batch) - few)
        while True:
            try:
                return self.graphs(batch, target) if self.graphs is not None else self._step(batch, target, images)
            except torch.OutOfMemoryError:
                # Of several processes the others would wait for the first gradients; half an update is no update.
                if self._is_updating or self.parts >= len(batch) or self.ranks.size > 1:
                    raise
            self._halve(len(batch))  # not before the traceback has let the activations go

    def _halve(self, images: int) -> None:
        """Compute mini-batches in twice as many parts from now on."""
        self.parts *= 2
        log.warning(
            "fine_tune: not enough memory for a mini-batch of %d images: computed in %d parts, whose gradients add up",
            images, self.parts,
        )  # fmt: skip
        self.optimiser.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            self.graphs = StepGraphs(self._step) if self.graphs is not None else None
            torch.cuda.empty_cache()

    def _step(self, batch: Tensor, target: Tensor, images: int | None = None) -> Tensor:
        loss = self._gradients(batch, target, images)
        # What is captured is not computed yet.
        self._is_updating = self.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.trained, MAX_GRADIENT_NORM)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._is_updating = False
        return loss

    def _gradients(self, batch: Tensor, target: Tensor, images: int | None) -> Tensor:
        """Compute the gradients, and return the loss."""
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part, labels in zip(batch.chunk(self.parts), target.chunk(self.parts), strict=True):
            with mixed_precision(self.device):
                logits = self.network(part)
            loss = targets.losses(logits.float(), labels, self.label_smoothing, multi_label=self.multi_label)
            # gradients are averaged over the processes
            loss = (loss * self._weights(labels)).sum() * self.ranks.size / (images or self._counted(target).sum())
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _weights(self, target: Tensor) -> Tensor:
        """Return what each image (n,) counts by its class, or by the share of each class where images are mixed."""
        if self.class_weights is None:
            return self._counted(target)
        if target.is_floating_point():
            return target @ self.class_weights
        return self._counted(target) * self.class_weights[target.clamp(min=0)]

    def _counted(self, target: Tensor) -> Tensor:
        return targets.counted(target, multi_label=self.multi_label)
