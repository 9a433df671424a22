"""The log loss of linear heads on principal axes and its gradient, in one pass over the features.

With labels (n, k) of any number of classes per image, it is the sum over the classes of the log losses of sigmoids.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rootstock.dataset.tables import Labels
from rootstock.features import reader
from rootstock.features.reader import Features
from rootstock.system.parallel import in_order, limit_to_one_core
from rootstock.training import rotated_file
from rootstock.training.kept_passes import KeptPasses
from rootstock.training.pass_progress import PassProgress
from rootstock.training.principal_axes import PrincipalAxes
from rootstock.training.products import times_transposed
from rootstock.training.rotated_file import Batch, RotatedFile

R = TypeVar("R")
Chunk = tuple[NDArray[np.float32], Labels]
SMALLEST_CURVATURE = 1e-9
NEGLIGIBLE = 1e-30  # a probability; with much smaller ones, denormal numbers, products take thirty times as long
BATCH = 2048  # rows per product: they and their logits stay in a core's cache
PENDING = 4  # mini-batches a thread


@dataclass(frozen=True)
class Solution:
    """Weights (k, r) and bias (k,) float64 on the principal axes."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def zeros(cls, shape: tuple[int, int]) -> "Solution":
        """Return the solution from which the first strength starts."""
        return cls(torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[0], dtype=torch.float64))

    def digest(self) -> str:
        """Return a digest of the values."""
        return hashlib.sha256(self.weight.numpy().tobytes() + self.bias.numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Evaluation:
    """The mean log loss at a point and its gradient, without the penalty.

    `curvature` is the mean of p (1 - p) over images and classes: the loss's curvature along an axis of variance 1.
    """

    at: Solution
    loss: float
    gradient: Solution
    curvature: float

    def penalised(self, l2_per_image: float) -> float:
        """Return the objective: with l2/(2n) ||W||²."""
        return self.loss + l2_per_image / 2 * float(self.at.weight.square().sum())

    def as_tensors(self) -> dict[str, Tensor]:
        """Return all but the point, in float64."""
        scalars = {"loss": self.loss, "curvature": self.curvature}
        return {
            "weight": self.gradient.weight,
            "bias": self.gradient.bias,
            **{name: torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()},
        }

    @classmethod
    def of_tensors(cls, at: Solution, found: dict[str, Tensor]) -> "Evaluation":
        """Return what `as_tensors` was made of."""
        return cls(at, float(found["loss"]), Solution(found["weight"], found["bias"]), float(found["curvature"]))


class LogLoss:
    """The mean log loss of linear heads on the principal axes of a training set.

    Features that fit into memory are rotated in the first pass and kept on the device, others in a temporary file in
    the folder of `passes`. Without it, or room on its disk, they are read in every pass, and the weights are rotated
    instead. On a CPU, mini-batches are computed on one core each and added up in their order, so that the result does
    not depend on the number of cores, and no core waits for another within a product.
    """

    def __init__(
        self, train: Features, axes: PrincipalAxes, classes: int, on: torch.device, pool: Executor,
        weights: NDArray[np.float32] | None = None, passes: KeptPasses | None = None,
        counted: PassProgress | None = None,
    ) -> None:  # fmt: skip
        self.passes, self.counted = passes, counted
        self.class_weights = None if weights is None else torch.from_numpy(weights).to(on)
        self.train, self.axes, self.device, self.pool = train, axes, on, pool
        self.images, self.shape = len(train), (classes, len(axes.variances))

    @cached_property
    def kept(self) -> list[Batch] | RotatedFile | None:
        """Mini-batches of rotated features (m, r) float32 and labels, in memory or in a file; None if in neither."""
        width = self.shape[1]
        rotated = self._on_each_core(lambda x, labels: (self.axes.rotate(x), labels), self._read())
        if 4 * self.images * width <= _bytes_to_keep(self.device):
            return list(rotated)
        return rotated_file.write(self.passes.folder, rotated, self.images, width) if self.passes else None

    def __call__(self, at: Solution) -> Evaluation:
        """Evaluate in one pass, or as a pass that was kept has found."""
        name, is_kept = at.digest(), False
        if self.passes is None:
            found = self._evaluate(at)
        else:
            is_kept = name in self.passes
            found = Evaluation.of_tensors(at, self.passes.recall(name, lambda: self._evaluate(at).as_tensors()))
        if self.counted:
            self.counted.one(is_kept=is_kept)
        return found

    def _evaluate(self, at: Solution) -> Evaluation:
        """Evaluate in one pass; products in float32, sums over mini-batches in float64."""
        n, (classes, _) = self.images, self.shape
        weight, bias = at.weight, at.bias
        if self.kept is None:
            weight = weight @ self.axes.projection.T
            bias = bias - weight @ self.axes.mean
        loss, spread, by_weight, by_bias = self._sum(*(part.to(self.device, torch.float32) for part in (weight, bias)))
        if self.kept is None:
            by_weight = (by_weight - torch.outer(by_bias, self.axes.mean)) @ self.axes.projection
        curvature = max(float(spread) / (n * classes), SMALLEST_CURVATURE)
        return Evaluation(at, float(loss) / n, Solution(by_weight / n, by_bias / n), curvature)

    def _sum(self, weight: Tensor, bias: Tensor) -> list[Tensor]:
        """Add up `_batch_sums` over all mini-batches, in float64 and on the CPU."""
        batches = self.kept if self.kept is not None else self._read()
        parts = self._on_each_core(lambda x, labels: _batch_sums(x, labels, weight, bias, self.class_weights), batches)
        with limit_to_one_core():  # other OpenMP threads would wait for those of the pool, and keep a core busy with it
            totals = [part.double() for part in next(parts)]
            for sums in parts:
                for total, part in zip(totals, sums, strict=True):
                    total += part
        return [total.cpu() for total in totals]

    def _on_each_core(self, function: Callable[[Tensor, Tensor], R], batches: Iterable[Batch]) -> Iterator[R]:
        """Yield a function of each mini-batch in their order, on a CPU computed on one core each."""
        if self.device.type == "cpu":
            return in_order(
                lambda batch: self.pool.submit(function, *batch), batches, PENDING * torch.get_num_threads()
            )
        return (function(*batch) for batch in batches)

    def _read(self) -> Iterator[Batch]:
        """Yield mini-batches of features (m, d) float32 and labels, (m,) int64 or (m, k) bool, on the device."""
        for x, labels in _of_equal_size(self.train):
            yield torch.from_numpy(x).to(self.device), torch.from_numpy(labels).to(self.device)


def _of_equal_size(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Yield BATCH rows of features and labels at a time; what is left over of the chunks is put together.

    Of some of a set's images each chunk has a few, and adding up gradients takes as long for few as for many.
    """
    rest: list[Chunk] = []
    for x, labels in chunks:
        whole = len(labels) - len(labels) % BATCH
        for start in range(0, whole, BATCH):
            yield x[start : start + BATCH], labels[start : start + BATCH]
        rest.append((x[whole:].copy(), labels[whole:]))  # a view would keep the whole chunk in memory
        if sum(len(some) for _, some in rest) >= BATCH:
            x, labels = map(np.concatenate, zip(*rest, strict=True))
            yield x[:BATCH], labels[:BATCH]
            rest = [(x[BATCH:].copy(), labels[BATCH:])]
    if any(len(labels) for _, labels in rest):
        x, labels = map(np.concatenate, zip(*rest, strict=True))
        yield x, labels


def _batch_sums(
    x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, class_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sums over a mini-batch: the loss, p (1 - p) over the classes, the gradients by weight (k, d) and bias.

    With class indices (m,), p is a softmax; with labels (m, k), sigmoids. An image counts with the weight of its class,
    if there are any. Nothing cancels where p of the label is close to 1: the loss is log(1 + Σ exp(margins of other
    classes)).
    """
    if labels.ndim == 2:
        return _sums_of_sigmoids(x, labels, weight, bias)
    label = labels[:, None]
    margins = times_transposed(x, weight, bias)
    margins -= margins.gather(1, label)
    margins.scatter_(1, label, -torch.inf)
    others = margins.logsumexp(1, keepdim=True)
    losses = functional.softplus(others)
    residual = torch.threshold_(margins.sub_(losses).exp_(), NEGLIGIBLE, 0)  # p; for the label, p - 1
    residual.scatter_(1, label, -others.sigmoid())
    size = residual.abs()
    spread = size * (1 - size)
    if class_weights is not None:
        of_image = class_weights[label]
        losses, spread, residual = losses * of_image, spread * of_image, residual * of_image
    return losses.sum(dtype=torch.float64), spread.sum(), times_transposed(residual.T, x.T), residual.sum(0)


def _sums_of_sigmoids(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = times_transposed(x, weight, bias)
    signed = torch.where(labels, -logits, logits)  # of the other answer: nothing cancels where it is improbable
    losses = functional.softplus(signed)
    size = torch.threshold_(signed.sigmoid_(), NEGLIGIBLE, 0)
    residual = torch.where(labels, -size, size)  # p, or p - 1
    spread = size * (1 - size)
    return losses.sum(dtype=torch.float64), spread.sum(), times_transposed(residual.T, x.T), residual.sum(0)


def _bytes_to_keep(on: torch.device) -> int:
    """Return how many bytes of rotated features are kept: on a GPU half of what is free."""
    return torch.cuda.mem_get_info(on)[0] // 2 if on.type == "cuda" else reader.KEPT_BYTES
