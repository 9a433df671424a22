"""The principal axes of a training set: standardised features, uncorrelated.

A linear head is fitted in these coordinates. They change neither its solutions nor the L2 penalty, as a rotation keeps
lengths, but tell for each coordinate how steep the loss is (logistic.py) and solve ridge regression at once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rootstock.features.reader import Features
from rootstock.system import progress
from rootstock.training.products import times_transposed

DEVIATION_FLOOR = 0.3  # share of the features' root mean square deviation; measured in docs/benchmarks.md
# Of the largest variance: axes with less are rounding errors, of constant features or of fewer images than features.
# Coordinates on them would be denormal numbers, with which products take thirty times as long.
SMALLEST = 1e-10


@dataclass(frozen=True)
class PrincipalAxes:
    """Coordinates z = (x - mean) @ projection of features x (d,), uncorrelated over the training images.

    mean (d,), projection (d, r) = diag(1 / deviations) @ eigenvectors, variances (r,) of the coordinates; all float64.
    r is d less the axes on which the images do not vary, and less than the number of images.
    """

    mean: Tensor
    projection: Tensor
    variances: Tensor

    def rotate(self, features: Tensor) -> Tensor:
        """Return the coordinates (n, r) float32 of features (n, d) float32, on their device.

        For threads of one core each (products.py).
        """
        mean, projection = (part.to(features.device, torch.float32) for part in (self.mean, self.projection))
        return times_transposed(features - mean, projection.T)


def find_principal_axes(
    features: Features,
    class_weights: NDArray[np.float32] | None = None,
    advance: progress.Advance = progress.nowhere,
) -> PrincipalAxes:
    """Find the principal axes of standardised features, in two passes, and report each image in each.

    With weights (k,) of classes, an image counts with that of its class; they average to 1 over the images.

    Deviations are floored at DEVIATION_FLOOR times their root mean square. Some features of a pretrained network
    hardly vary on a new domain (down to 4e-5); dividing by that amplifies noise, and the first step of fine-tuning
    would ruin the head. A feature is constant, and gets no weight, if it varies by less than float32 resolves around
    its mean. Absolute size does not matter: random weights give informative features of 1e-9.
    """
    n, d = len(features), features.width
    weights = None if class_weights is None else torch.from_numpy(class_weights)
    mean, variance = mean_and_variance(_tensors(features, weights, advance))
    inverse_deviation = invert_deviations(mean, variance)
    standardised = (
        _times(((x - mean) * inverse_deviation).float(), None if counts is None else counts.sqrt())
        for x, counts in _tensors(features, weights, advance)
    )
    if n < d:
        return _axes_of_few(mean, torch.cat(list(standardised)).double(), inverse_deviation)
    variances, axes = torch.linalg.eigh(_sum((z.T @ z).double() for z in standardised) / n)
    kept = variances > SMALLEST * variances[-1]
    return PrincipalAxes(mean, inverse_deviation[:, None] * axes[:, kept], variances[kept])


def _tensors(
    features: Features, weights: Tensor | None, advance: progress.Advance
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield features (n, d), and with which weight each image counts: (n, 1), or None if all count the same."""
    for x, labels in features:
        yield torch.from_numpy(x), None if weights is None else weights[torch.from_numpy(labels)][:, None]
        advance(len(x))


def mean_and_variance(parts: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
    """Return the mean and variance (d,) float64 of features, in one pass.

    Sums are those of differences from one image, as squares of a feature far from zero would lose what its variance is
    made of (Chan, Golub and LeVeque 1983, Algorithms for Computing the Sample Variance).

    Args:
        parts: features (n, d) float32 and with which weight each image counts (n, 1), None if all count the same.
    """
    images, origin, total, squares = 0.0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for x, counts in parts:
        if not len(x):
            continue
        origin = origin if images else x[0].clone()
        images += len(x) if counts is None else float(counts.sum(dtype=torch.float64))
        difference = (x - origin).double()  # float32 has no squares of features of 1e-23
        total = total + _times(difference, counts).sum(0)
        squares = squares + _times(difference.square_(), counts).sum(0)
    mean = total / images
    return origin + mean, (squares / images - mean.square()).clamp_(min=0)


def _times(x: Tensor, counts: Tensor | None) -> Tensor:
    return x if counts is None else x * counts  # a product with 1 would copy all features in every pass


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """Add up tensors, which are not kept."""
    return reduce(Tensor.add_, parts)


def invert_deviations(mean: Tensor, variance: Tensor) -> Tensor:
    """Return the inverse standard deviation of each feature (d,), floored; 0 for a constant one."""
    deviation = variance.sqrt()
    constant = deviation <= 1e-6 * mean.abs()
    floored = torch.maximum(deviation, DEVIATION_FLOOR * variance.mean().sqrt())
    return torch.where(constant, 0.0, 1 / torch.where(constant, 1.0, floored))


def _axes_of_few(mean: Tensor, standardised: Tensor, inverse_deviation: Tensor) -> PrincipalAxes:
    """Find the axes of fewer images than features by the eigenvectors of their inner products (n, n)."""
    n = len(standardised)
    variances, vectors = torch.linalg.eigh(standardised @ standardised.T / n)
    kept = variances > SMALLEST * variances[-1]
    axes = standardised.T @ vectors[:, kept] / (n * variances[kept]).sqrt()
    return PrincipalAxes(mean, inverse_deviation[:, None] * axes, variances[kept])
