"""95 % intervals of figures on test images, some of which belong together.

Images of a group (a scene, a patient, near duplicates) are not independent of each other: intervals count groups. Where
every group is one image, these are the well-known intervals of independent images. docs/retraining.md has the coverage.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]
Interval = dict[str, float]  # value, low, high

CONFIDENCE = 0.95  # of every two-sided interval
DECIMALS = 6
PRIOR_GROUPS = 2  # weight of full correlation in a design effect that few groups tell about


@dataclass(frozen=True)
class SampleSize:
    """How many independent images a sample is worth, and the number of its groups."""

    images: float
    groups: int
    grouped: bool  # whether any group has more than one image

    def quantile(self, tail: float) -> float:
        """Return the quantile of the standard normal, or of Student's t where variances come from groups."""
        if not self.grouped:
            return float(special.ndtri(1 - tail))
        return float(special.stdtrit(max(self.groups - 1, 1), 1 - tail))


def interval(value: float, low: float, high: float) -> Interval:
    """Round (never to -0.0), and include the value."""
    ends = {"value": value, "low": min(low, value), "high": max(high, value)}
    return {name: round(float(end), DECIMALS) + 0.0 for name, end in ends.items()}


def design_effect(values: Floats, groups: Integers, weights: Floats | None = None) -> float:
    """Return by how much the grouping of images inflates the variance of a weighted mean (Kish 1965), at least 1.

    It is estimated from the groups' sums. Where few groups deviate from the rest it could be far too small: a scene in
    which the models disagree may simply not be in the sample. It is therefore averaged with the largest possible one
    (all images of a group alike), which counts like `PRIOR_GROUPS` groups.

    Args:
        values: of each image (n,).
        groups: the group of each image (n,), as any integers.
        weights: of each image (n,), summing to 1; None for equal ones.
    """
    n = len(values)
    weights = np.full(n, 1 / n) if weights is None else weights
    codes = np.unique(groups, return_inverse=True)[1]
    shares = np.bincount(codes, weights)  # of each group in the mean
    count, squares = len(shares), float((weights**2).sum())
    if count == n:
        return 1.0
    largest = float((shares**2).sum()) / squares
    mean = float(weights @ values)
    independent = float(weights**2 @ (values - mean) ** 2)
    if count == 1 or independent == 0:
        return largest
    sums = np.bincount(codes, weights * values)
    clustered = count / (count - 1) * float(((sums - shares * mean) ** 2).sum())
    common = np.median(values)
    told = len(np.unique(codes[values != common]))  # groups with an image unlike most
    return max(1.0, (told * clustered / independent + PRIOR_GROUPS * largest) / (told + PRIOR_GROUPS))


def sample_size(values: Floats, groups: Integers, weights: Floats | None = None) -> SampleSize:
    """Return the effective sample size of a weighted mean; arguments as for `design_effect`."""
    n, count = len(values), len(np.unique(groups))
    independent = n if weights is None else 1 / float((weights**2).sum())
    if count == n:
        return SampleSize(independent, n, grouped=False)
    return SampleSize(independent / design_effect(values, groups, weights), count, grouped=True)


def wilson(value: float, size: SampleSize) -> Interval:
    """Return the Wilson interval of a share at an effective sample size (Korn and Graubard 1998)."""
    n, z = size.images, size.quantile((1 - CONFIDENCE) / 2)
    middle = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(value * (1 - value) / n + z**2 / (4 * n**2))
    return interval(value, max(middle - half, 0.0), min(middle + half, 1.0))


def share(hits: npt.NDArray[np.bool_], groups: Integers) -> Interval:
    """Return the share of hits (n,) with its interval; 0, from 0 to 1, without images."""
    if not len(hits):
        return interval(0.0, 0.0, 1.0)
    return wilson(float(hits.mean()), sample_size(hits.astype(float), groups))


def balancing_weights(labels: Integers) -> Floats:
    """Return weights (n,) with which every class that occurs counts the same; they sum to 1."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights: Floats = 1 / (counts[codes] * len(counts))
    return weights


def balanced_share(hits: npt.NDArray[np.bool_], labels: Integers, groups: Integers) -> Interval:
    """Return the mean over classes of the share of hits (balanced accuracy) with its interval."""
    weights = balancing_weights(labels)
    return wilson(float(weights @ hits), sample_size(hits.astype(float), groups, weights))


def mean_loss(losses: Floats, groups: Integers, largest: float) -> Interval:
    """Return a mean of losses, at least 0 each, with an interval that is symmetric on a logarithmic scale.

    Its variance is that of groups. A mean to which few images contribute most has a variance that is hardly known: the
    t distribution has Satterthwaite's (1946) degrees of freedom, 2 g / (kurtosis - 1) for g groups.

    Args:
        losses: of each image (n,), n > 0.
        groups: the group of each image (n,), as any integers.
        largest: the largest possible loss.

    Returns:
        The value alone if there is nothing to estimate a variance from.
    """
    codes = np.unique(groups, return_inverse=True)[1]
    sums, sizes = np.bincount(codes, losses), np.bincount(codes)
    count, mean = len(sums), float(losses.mean())
    deviations = sums - sizes * mean
    squares = float((deviations**2).sum())
    if count < 2 or mean <= 0 or squares == 0:
        return {"value": round(mean, DECIMALS) + 0.0}
    kurtosis = count * float((deviations**4).sum()) / squares**2
    freedom = min(count - 1.0, max(2 * count / max(kurtosis - 1, 1e-9), 1.0))
    error = np.sqrt(count / (count - 1) * squares) / len(losses) / mean  # of the logarithm
    factor = float(np.exp(special.stdtrit(freedom, (1 + CONFIDENCE) / 2) * error))
    return interval(mean, mean / factor, min(mean * factor, largest))
