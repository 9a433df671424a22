"""Bootstrap over groups of images: intervals of F1, which is no mean over images."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from rootstock.evaluation.intervals import (
    Floats,
    Integers,
    Interval,
    SampleSize,
    wilson,
)

MAX_FLOATS = 2**21  # 16 MB of float64: bounds each array of a chunk of resamples
SMALLEST = float(np.finfo(np.float32).eps)  # a probability below it counts as this in the log loss, as in scikit-learn


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


def resample(outcome: Outcome, k: int, resamples: int, seed: int) -> Resampled:
    """Resample the groups; the first "resample" is the sample itself and gives the values.

    F1 is a function of sums over groups: true positives, predictions and images of each class (k each). One sparse
    matrix (sums, groups) holds what each group adds to each sum, so that a chunk of resamples is one matrix product.
    """
    codes = np.unique(outcome.groups, return_inverse=True)[1]
    count = int(codes.max()) + 1
    counts = [
        _adds(outcome.labels, outcome.correct, codes, k),
        _adds(outcome.predicted, None, codes, k),
        _adds(outcome.labels, None, codes, k),
    ]
    adds = sparse.vstack(counts, format="csr")
    draws = [
        np.split((adds @ weights.T).T, [k, 2 * k], axis=1)
        for weights in _weights(count, resamples, seed, max(1, MAX_FLOATS // max(adds.shape)))
    ]
    hits, predictions, images = (np.concatenate(figure) for figure in zip(*draws, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * hits / (predictions + images)  # NaN without images
    macro_f1 = np.nansum(f1, axis=1) / (predictions + images > 0).sum(axis=1)
    size = SampleSize(len(codes), count, count < len(codes))
    return Resampled(
        _from_standard_error(macro_f1, size),
        [_from_standard_error(column, size) for column in f1.T],
    )


def _adds(classes: Integers, counted: npt.NDArray[np.bool_] | None, codes: Integers, k: int) -> sparse.csr_matrix:
    """Return how many images of each class (k, groups) each group has; of those counted, if given."""
    values = np.ones(len(codes)) if counted is None else counted.astype(np.float64)
    return sparse.csr_matrix((values, (classes, codes)), shape=(k, int(codes.max()) + 1))


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
