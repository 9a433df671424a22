"""Bootstrap over groups of images: intervals of F1 and of mean losses.

F1 takes its standard error from the resamples, a loss its quantiles (bootstrap-t; DiCiccio and Efron 1996).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from rootstock.evaluation.intervals import (
    CONFIDENCE,
    DECIMALS,
    Floats,
    Integers,
    Interval,
    SampleSize,
    interval,
    wilson,
)

MAX_FLOATS = 2**21  # 16 MB of float64: bounds each array of a chunk of resamples
SMALLEST = float(np.finfo(np.float32).eps)  # a probability below it counts as this in the log loss, as in scikit-learn
LARGEST = {"log_loss": float(-np.log(SMALLEST)), "brier": 2.0}  # of a single image


@dataclass(frozen=True)
class Outcome:
    """The outcome for each image: arrays (n,)."""

    labels: Integers
    groups: Integers
    predicted: Integers
    correct: npt.NDArray[np.bool_]
    top5: npt.NDArray[np.bool_]
    log_loss: Floats
    brier: Floats
    confidence: Floats
    bins: Integers

    def among(self, images: npt.NDArray[np.bool_]) -> "Outcome":
        """Return the outcome for some of the images."""
        return Outcome(**{name: values[images] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Resampled:
    """What the bootstrap over groups gives: figures with intervals; None for an F1 of 0 or 1."""

    macro_f1: Interval | None
    f1: list[Interval | None]  # (classes,)
    log_loss: Interval
    brier: Interval


def resample(outcome: Outcome, k: int, resamples: int, seed: int) -> Resampled:
    """Resample the groups; the first "resample" is the sample itself and gives the values.

    All figures are functions of sums over groups: true positives, predictions and images of each class (k each), and
    for each loss the sums that its mean and standard error need. One sparse matrix (sums, groups) holds what each group
    adds to each sum, so that a chunk of resamples is one matrix product.
    """
    codes = np.unique(outcome.groups, return_inverse=True)[1]
    count = int(codes.max()) + 1
    counts = [
        _adds(outcome.labels, outcome.correct, codes, k),
        _adds(outcome.predicted, None, codes, k),
        _adds(outcome.labels, None, codes, k),
    ]
    sums = [sparse.csr_matrix(_moments(loss, codes)) for loss in (outcome.log_loss, outcome.brier)]
    adds = sparse.vstack([*counts, *sums], format="csr")
    draws = [
        np.split((adds @ weights.T).T, np.cumsum([k, k, k, 5]), axis=1)
        for weights in _weights(count, resamples, seed, max(1, MAX_FLOATS // max(adds.shape)))
    ]
    hits, predictions, images, log_loss, brier = (np.concatenate(figure) for figure in zip(*draws, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * hits / (predictions + images)  # NaN without images
    macro_f1 = np.nansum(f1, axis=1) / (predictions + images > 0).sum(axis=1)
    size = SampleSize(len(codes), count, count < len(codes))
    return Resampled(
        _from_standard_error(macro_f1, size),
        [_from_standard_error(column, size) for column in f1.T],
        _bootstrap_t(log_loss, count, LARGEST["log_loss"]),
        _bootstrap_t(brier, count, LARGEST["brier"]),
    )


def _adds(classes: Integers, counted: npt.NDArray[np.bool_] | None, codes: Integers, k: int) -> sparse.csr_matrix:
    """Return how many images of each class (k, groups) each group has; of those counted, if given."""
    values = np.ones(len(codes)) if counted is None else counted.astype(np.float64)
    return sparse.csr_matrix((values, (classes, codes)), shape=(k, int(codes.max()) + 1))


def _moments(loss: Floats, codes: Integers) -> Floats:
    """Return what each group adds (5, groups) to the sums that the mean loss and its standard error are made of."""
    s, n = np.bincount(codes, loss), np.bincount(codes).astype(np.float64)
    return np.stack([s, n, s * s, s * n, n * n])


def _weights(count: int, resamples: int, seed: int, at_once: int) -> Iterator[Floats]:
    """Yield how often each group is in each resample, (up to at_once, groups); the first is the sample itself."""
    draw = np.random.default_rng(seed)
    for start in range(0, resamples + 1, at_once):
        rows = range(start, min(start + at_once, resamples + 1))
        counts = [
            np.bincount(draw.integers(0, count, count), minlength=count) if row else np.ones(count) for row in rows
        ]
        yield np.stack(counts).astype(np.float64)


def _from_standard_error(draws: Floats, size: SampleSize) -> Interval | None:
    """Return a share with the Wilson interval of its bootstrap standard error; None for 0 and 1, which have none."""
    value = float(draws[0])
    spread = draws[1:][np.isfinite(draws[1:])]
    if not 0 < value < 1:
        return None
    variance = float(spread.var(ddof=1)) if len(spread) > 1 and size.groups > 1 else 0.0
    if variance == 0:  # nothing to go by: of a group, only one image counts
        return wilson(value, SampleSize(size.groups, size.groups, size.grouped))
    variance *= size.groups / (size.groups - 1)
    return wilson(value, SampleSize(value * (1 - value) / variance, size.groups, size.grouped))


def _bootstrap_t(sums: Floats, groups: int, largest: float) -> Interval:
    """Return a mean loss with its bootstrap-t interval, from the `_moments` of resamples (1 + r, 5), the sample first.

    The quantiles are those of (log m* - log m) / (standard error of log m*).
    """
    s, n, ss, sn, nn = sums.T
    mean = s / n
    value = {"value": round(float(mean[0]), DECIMALS) + 0.0}
    if groups < 2 or mean[0] <= 0:
        return value
    squares = np.maximum(ss - 2 * mean * sn + mean**2 * nn, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(groups / (groups - 1) * squares) / n / mean  # of log m
        t = np.log(mean / mean[0]) / error
    t = t[1:][np.isfinite(t[1:])]
    if not error[0] or len(t) < 2:
        return value
    tail = (1 - CONFIDENCE) / 2
    least, most = np.log(mean[0]) - np.quantile(t, [1 - tail, tail]) * error[0]
    return interval(mean[0], np.exp(min(least, np.log(mean[0]))), np.exp(min(most, np.log(largest))))
