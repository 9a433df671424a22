"""A step of training: forward, backward and update, without waiting for the device, in parts where memory is short.

On a GPU the step is captured as a CUDA graph, and replayed: launching its kernels one by one from Python takes longer
than a small mini-batch takes to compute (docs/benchmarks.md).
"""

import logging
from collections.abc import Callable

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

log = logging.getLogger(__name__)
MAX_GRADIENT_NORM = 1.0  # bounds the first steps after unfreezing (docs/benchmarks.md)
STEPS_BEFORE_CAPTURE = 3  # in which libraries allocate what they keep


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
        graph = self.device.type == "cuda" and not self.scaler.is_enabled() and alone
        self._graph = _Graph(self._step) if graph else None
        self.mixing = Mixing(settings.regularization, len(model.head.bias))
        self.average = MovingAverage(self.trained, settings.averaging.ema) if settings.averaging.ema else None

    def keep_in(self, state: TrainingState) -> None:
        """Let a checkpoint have what the next step needs besides the model's weights."""
        state.optimiser, state.scaler = self.optimiser.state_dict(), self.scaler.state_dict()
        state.average = self.average.values if self.average else None

    def resume(self, state: TrainingState) -> None:
        """Go on from a checkpoint."""
        self.optimiser.load_state_dict(state.optimiser or {})
        self.scaler.load_state_dict(state.scaler)
        if self.average and state.average:
            self.average = MovingAverage(self.trained, self.average.decay, state.average)

    def set_learning_rate(self, share: float) -> None:
        """Set the learning rate of each group to a share of its peak."""
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(group["peak"] * share)
            else:
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
                return self._graph(batch, target) if self._graph else self._step(batch, target, images)
            except torch.OutOfMemoryError:
                if self.parts >= len(batch) or self.ranks.size > 1:  # the others would wait for the first gradients
                    raise
                self.parts *= 2
                log.warning(
                    "fine_tune: not enough memory for a mini-batch of %d images: computed in %d parts, whose gradients "
                    "add up", len(batch), self.parts,
                )  # fmt: skip
                self.optimiser.zero_grad(set_to_none=True)
                if self.device.type == "cuda":
                    self._graph = _Graph(self._step) if self._graph else None
                    torch.cuda.empty_cache()

    def _step(self, batch: Tensor, target: Tensor, images: int | None = None) -> Tensor:
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
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.trained, MAX_GRADIENT_NORM)
        self.scaler.step(self.optimiser)
        self.scaler.update()
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


class _Graph:
    """A step that is computed a few times, then captured as a CUDA graph, and replayed for mini-batches of its shape.

    Others, and all where it cannot be captured (an operation that waits for the GPU), are computed as they come.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.step = step
        self._stream = torch.cuda.Stream()
        self._before = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch, self._target, self._loss = (torch.empty(0) for _ in range(3))

    def __call__(self, batch: Tensor, target: Tensor) -> Tensor:
        """Compute the step, as `TrainingStep` does."""
        if self._before < STEPS_BEFORE_CAPTURE:
            self._before += 1
            return self._beside(batch, target)
        if self._before == STEPS_BEFORE_CAPTURE:
            self._before += 1
            self._capture(batch, target)
        if self._graph is None or batch.shape != self._batch.shape:
            return self._beside(batch, target)
        self._batch.copy_(batch)
        self._target.copy_(target)
        self._graph.replay()
        return self._loss.clone()

    def _beside(self, batch: Tensor, target: Tensor) -> Tensor:
        """Compute on another stream than the default one, to which a captured step may not be tied."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            loss = self.step(batch, target)
        current.wait_stream(self._stream)
        return loss

    def _capture(self, batch: Tensor, target: Tensor) -> None:
        self._batch, self._target = batch.clone(), target.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._loss = self.step(self._batch, self._target)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.info("fine_tune: the step could not be captured as a CUDA graph, and runs eagerly: %s", error)
        else:
            self._graph = graph
