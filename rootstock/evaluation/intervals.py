"""95 % intervals of figures on test images, some of which belong together.

Images of a group (a scene, a patient, near duplicates) are not independent of each other: the standard error behind an
interval is that of a bootstrap over groups. Its ends are not the percentiles of the bootstrap, which cover too little
where groups or mistakes are few, but those of Wilson's interval, or of Student's t for losses. Where every group is one
image, these are the well-known intervals of independent images. docs/retraining.md has the coverage.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]
Interval = dict[str, float]  # value, low, high; value alone where there is no interval

CONFIDENCE = 0.95  # of every two-sided interval
DECIMALS = 6
MIN_GROUPS, MIN_GROUPS_OF_CLASS = 20, 12  # of equal weight: with fewer, intervals do not cover what they promise
HEAVY, SHARE_OF_HEAVY = 2, 0.1  # times the mean weight: images of rare classes; share of all weight that matters
# Weight of full correlation in a design effect that few groups tell about (and of all variation in the rarest class,
# in the effective weight of images), by simulation.
PRIOR_GROUPS, PRIOR_GROUPS_OF_LOSS = 0.5, 1


@dataclass(frozen=True)
class SampleSize:
    """How many independent images, and how many groups of equal weight, a sample is worth."""

    images: float
    groups: float
    estimated: bool  # whether the design effect is estimated from the groups
    few_heavy: bool = False  # whether the images that weigh most, of rare classes, come in too few groups

    def quantile(self, tail: float) -> float:
        """Return the quantile of the standard normal, or of Student's t where a variance is estimated from groups."""
        return float(special.stdtrit(max(self.groups - 1, 1), 1 - tail)) if self.estimated else normal_quantile(tail)


@dataclass(frozen=True)
class WeightedImages:
    """The images that a figure is computed from: weights (n,), summing to 1, and the group of each (n,)."""

    weights: Floats
    codes: Integers  # 0, 1, ...
    group_weights: Floats

    @classmethod
    def of(cls, groups: Integers, weights: Floats | None = None) -> "WeightedImages":
        """Return images of given groups (n,), any integers, with weights (n,) that sum to 1; None for equal ones."""
        own: Floats = np.full(len(groups), 1 / len(groups)) if weights is None else weights
        codes = np.unique(groups, return_inverse=True)[1]
        return cls(own, codes, np.bincount(codes, own).astype(np.float64))

    @property
    def grouped(self) -> bool:
        """Whether any group has more than one image."""
        return len(self.group_weights) < len(self.weights)

    @property
    def effective_groups(self) -> float:
        """Return how many groups of equal weight these are worth (Kish 1965)."""
        return 1 / float((self.group_weights**2).sum())

    @property
    def few_heavy(self) -> bool:
        """Whether images that weigh much more than most (of rare classes), and matter, come in too few groups."""
        heavy = self.weights > HEAVY / len(self.weights)
        matter = float(self.weights[heavy].sum()) > SHARE_OF_HEAVY
        return matter and len(np.unique(self.codes[heavy])) < MIN_GROUPS_OF_CLASS

    @property
    def largest_design_effect(self) -> float:
        """Return the design effect if all images of a group are alike."""
        return float((self.group_weights**2).sum() / (self.weights**2).sum())

    def design_effect(self, deviations: Floats, told: float, prior: float) -> float:
        """Return by how much the grouping of images inflates the variance of a figure (Kish 1965), at least 1.

        It is estimated by a bootstrap over groups. Where few groups deviate from the rest it could be far too small: a
        scene in which the model errs may simply not be in the sample. So it is averaged with the largest possible one.

        Args:
            deviations: what each image (n,) adds to the figure's error; they sum to 0.
            told: number of groups that tell about it.
            prior: number of groups that the largest possible one counts like, above 0.
        """
        if not self.grouped:
            return 1.0
        largest, independent = self.largest_design_effect, float((deviations**2).sum())
        if len(self.group_weights) == 1 or independent == 0:
            return largest
        clustered = self.bootstrap_variance(deviations) / self._share_of_variance()
        return max(1.0, (told * clustered / independent + prior * largest) / (told + prior))

    def bootstrap_variance(self, deviations: Floats) -> float:
        """Return the variance of a figure under a bootstrap over groups, in the limit of infinitely many resamples.

        For a sum over groups that is the sum of their squares, so that nothing has to be drawn (the infinitesimal
        jackknife; Efron 1982, The Jackknife, the Bootstrap and Other Resampling Plans, chapter 6).

        Args:
            deviations: what each image (n,) adds to the figure's error; they sum to 0.
        """
        return float((np.bincount(self.codes, deviations) ** 2).sum())

    def _share_of_variance(self) -> float:
        """Return which share of the variance is left in deviations from the estimated mean: (g - 1) / g for g equals.

        The images of a group are taken to be alike, so that its sum has a variance in proportion to its weight squared.
        """
        squares, cubes = ((self.group_weights**power).sum() for power in (2, 3))
        return float(max(1 - 2 * cubes / squares + squares, 1 / len(self.group_weights)))


def normal_quantile(tail: float) -> float:
    """Return the quantile of the standard normal distribution that leaves out `tail` above it."""
    return float(special.ndtri(1 - tail))


def interval(value: float, low: float, high: float) -> Interval:
    """Round (never to -0.0), and include the value."""
    ends = {"value": value, "low": min(low, value), "high": max(high, value)}
    return {name: round(float(end), DECIMALS) + 0.0 for name, end in ends.items()}


def no_interval(value: float) -> Interval:
    """Return a figure without an interval, rounded."""
    return {"value": round(value, DECIMALS) + 0.0}


def sample_size(values: Floats, groups: Integers, weights: Floats | None = None) -> SampleSize:
    """Return the effective sample size of a weighted mean.

    Where all images of a group are alike, or nothing tells that they are not, it is that of as many images as there are
    groups, and nothing about it is estimated.

    Args:
        values: of each image (n,).
        groups: the group of each image (n,), as any integers.
        weights: of each image (n,), summing to 1; None for equal ones.
    """
    images = WeightedImages.of(groups, weights)
    deviations = images.weights * (values - images.weights @ values)
    largest = images.largest_design_effect
    # Of a gain, of which few groups tell, a group lighter than the heaviest tells only the share of what that does.
    unlike = _differs_from_median(values)
    told = float(images.group_weights[np.unique(images.codes[unlike])].sum() / images.group_weights.max())
    effect = min(images.design_effect(deviations, told, PRIOR_GROUPS), largest)
    size = 1 / _effective_weight(values, unlike, images) / effect
    return SampleSize(size, images.effective_groups, effect < largest * (1 - 1e-9), images.few_heavy)


def _effective_weight(values: Floats, unlike: npt.NDArray[np.bool_], images: WeightedImages) -> float:
    """Return the weight of each of as many independent images of equal weight as these are worth.

    It is that of Kish (1965) if images of all weights vary alike, and more if the heavy ones (of rare classes, in a
    balanced accuracy) vary more. If they vary less it is not less: that they did in a sample may be chance.
    """
    distances = (values - images.weights @ values) ** 2
    varying = float(images.weights @ distances)
    estimated = float(images.weights**2 @ distances) / varying if varying else 0.0
    cautious = _cautious_weight(estimated, unlike, images)
    return max(cautious, float((images.weights**2).sum()))


def _cautious_weight(estimated: float, unlike: npt.NDArray[np.bool_], images: WeightedImages) -> float:
    """Average an effective weight with the largest one, as all that varies could be among the heavy images.

    Args:
        estimated: the effective weight that the images which vary give.
        unlike: which images (n,) are unlike most: the heavier they are, the more they tell about it.
        images: where all weigh the same, the effective weight is returned as it is.
    """
    largest = float(images.weights.max())
    if largest * len(images.weights) <= 1 + 1e-9:
        return estimated
    heaviest = np.zeros(len(images.group_weights))
    np.maximum.at(heaviest, images.codes, np.where(unlike, images.weights, 0))
    told = float(heaviest.sum()) / largest
    return (told * estimated + PRIOR_GROUPS * largest) / (told + PRIOR_GROUPS)


def _differs_from_median(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = values != np.median(values)
    return found


def wilson(
    value: float, deviations: Floats, hits: npt.NDArray[Any], images: WeightedImages, *, means: int = 1,
    within_class: bool = False, rarity: Floats | None = None,
) -> Interval:  # fmt: skip
    """Return a figure from 0 to 1 with its Wilson interval at the effective sample size (Korn and Graubard 1998).

    A figure that is no mean over images (F1) has the deviations of its first-order expansion (Taylor linearisation:
    Särndal, Swensson and Wretman 1992, chapter 5).

    Args:
        value: the figure.
        deviations: what each image (n,) adds to the figure's error; they sum to 0.
        hits: whether each image (n,) is classified correctly, or how far, from 0 to 1.
        images: weights and groups.
        means: how many means the deviations are from; each takes a degree of freedom.
        within_class: whether these are the images of one class.
        rarity: of a mean over classes, the weight (n,) of the rarest class that each image tells of; they sum to 1.

    Returns:
        The value alone where images come in too few groups.
    """
    groups = images.effective_groups
    if images.grouped and groups < (MIN_GROUPS_OF_CLASS if within_class else MIN_GROUPS):
        return no_interval(value)
    independent = float((deviations**2).sum()) * (groups - 1) / max(groups - means, 1)
    unlike = _differs_from_median(hits)
    weight, enough = float((images.weights**2).sum()), groups > 2 * means
    if independent > 0 and 0 < value < 1 and enough:
        weight = independent / (value * (1 - value))
    if rarity is not None and (independent == 0 or enough):
        weight = _cautious_weight(weight, unlike, WeightedImages.of(images.codes, rarity))
    size = 1 / weight
    told = len(np.unique(images.codes[unlike]))
    size /= images.design_effect(deviations, told, PRIOR_GROUPS)
    tail = (1 - CONFIDENCE) / 2
    # Of a class's few groups even fewer have mistakes: the design effect is nearly the largest, and t would cover 99 %.
    z = normal_quantile(tail) if within_class else SampleSize(size, groups, images.grouped).quantile(tail)
    middle = (value + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * np.sqrt(value * (1 - value) / size + z**2 / (4 * size**2))
    return interval(value, max(middle - half, 0.0), min(middle + half, 1.0))


def share(hits: npt.NDArray[Any], groups: Integers, *, within_class: bool = False) -> Interval:
    """Return the share of hits (n,), or the mean of values from 0 to 1, with its interval; 0, from 0 to 1, of none."""
    if not len(hits):
        return interval(0.0, 0.0, 1.0)
    images, value = WeightedImages.of(groups), float(hits.mean())
    return wilson(value, images.weights * (hits - value), hits, images, within_class=within_class)


def growth_to_exclude(found: Interval, hypothesis: float) -> float:
    """Return of how many times as many images a Wilson interval would exclude a hypothesis; infinity: of none.

    At either end of the interval (value - end)² / (end (1 - end)) is z² / n, and of the hypothesis it has to be more.

    Args:
        found: a share with its interval.
        hypothesis: a hypothetical share.
    """
    value = found["value"]
    end = found["low"] if value > 0.5 else found["high"]
    distance, spread = (value - hypothesis) ** 2, hypothesis * (1 - hypothesis)
    return (value - end) ** 2 / (end * (1 - end)) * spread / distance if distance * spread else math.inf


def mean_loss(losses: Floats, groups: Integers, largest: float) -> Interval:
    """Return a mean of losses, at least 0 each, with an interval that is symmetric on a logarithmic scale.

    A mean to which few images contribute most has a variance that is hardly known: the t distribution has
    Satterthwaite's (1946) degrees of freedom, 2 g / (kurtosis - 1) for g groups.

    Args:
        losses: of each image (n,), n > 0.
        groups: the group of each image (n,), as any integers.
        largest: the largest possible loss.

    Returns:
        The value alone if there is nothing to estimate a variance from, or too few groups.
    """
    images, mean = WeightedImages.of(groups), float(losses.mean())
    deviations = images.weights * (losses - mean)
    sums = np.bincount(images.codes, deviations)
    count, squares = len(sums), float((sums**2).sum())
    too_few = images.grouped and images.effective_groups < MIN_GROUPS
    if count < 2 or mean <= 0 or squares == 0 or too_few:
        return no_interval(mean)
    kurtosis = count * float((sums**4).sum()) / squares**2
    freedom = min(images.effective_groups - 1, max(2 * count / max(kurtosis - 1, 1e-9), 1.0))
    effect = images.design_effect(deviations, freedom, PRIOR_GROUPS_OF_LOSS)
    variance = float((deviations**2).sum()) * effect * (1.0 if images.grouped else count / (count - 1))
    factor = float(
        np.exp(special.stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(variance) / mean)
    )  # of the logarithm
    return interval(mean, mean / factor, min(mean * factor, largest))
