"""Classification metrics with 95 % intervals that count groups of images, not images.

Accuracy, balanced accuracy, top-5, recall and precision are shares and have Wilson intervals at the effective sample
size (intervals.py). F1 and the losses are bootstrapped over groups: F1 takes its standard error from the resamples, the
losses their quantiles (bootstrap-t). Figures whose intervals would not cover what they promise have none: calibration
error, ROC-AUC, average precision. docs/retraining.md has the coverage.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse, special
from sklearn.metrics import average_precision_score, roc_auc_score

from rootstock.evaluation.intervals import (
    CONFIDENCE as CONFIDENCE,
    DECIMALS as DECIMALS,
    Floats as Floats,
    Integers as Integers,
    Interval as Interval,
    SampleSize,
    balanced_share,
    interval,
    share,
    wilson,
)

Strings = npt.NDArray[Any]

BINS = 15  # of equal width, for calibration: Guo et al. (2017), On Calibration of Modern Neural Networks
MAX_FLOATS = 2**21  # 16 MB of float64: bounds each array of a bootstrap chunk
SMALLEST = float(np.finfo(np.float32).eps)  # a probability below it counts as this in the log loss, as in scikit-learn
LARGEST = {"log_loss": float(-np.log(SMALLEST)), "brier": 2.0}  # of a single image


def score(
    labels: Integers,
    probabilities: Floats,
    domains: Strings,
    classes: list[str],
    *,
    groups: Integers | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score predictions overall, per domain and per class.

    A figure is `{"value", "low", "high"}` with its 95 % interval, or `{"value"}`; rounded to 6 decimals, never NaN:

    - accuracy, balanced_accuracy (the mean recall), top5 (the best min(5, k)), recall, precision: Wilson.
    - macro_f1, f1: Wilson at the standard error of the bootstrap; without a mistake or without a hit, resamples do not
      differ, and macro-F1 takes the interval of accuracy, F1 that of recall.
    - log_loss, brier (the squared error, summed over classes, 0 to 2): bootstrap-t on a logarithmic scale (DiCiccio and
      Efron 1996); no interval with fewer than two groups.
    - ece, expected calibration error, less what noise adds to it (Kumar et al. 2019); at least 0; no interval.
    - roc_auc, average_precision: one against rest, averaged over the classes that occur; no interval.

    Args:
        labels: class indices (n,), n > 0.
        probabilities: (n, k), rows that sum to one.
        domains: domain of each image (n,).
        classes: the k names, in index order.
        groups: group of each image (n,), as any integers; None if every image is its own.
        resamples: bootstrap resamples.
        seed: of the resamples; equal arguments give equal results.

    Returns:
        The figures overall, with "images", "groups", "domains": {domain: the same without roc_auc and
        average_precision} and "classes": {class: "recall", "precision", "f1", "images"}. Macro-F1 averages over the
        classes that occur in labels or predictions, as scikit-learn does. A class without images has `"images": 0` and
        no figures. One never predicted has precision 0, interval 0 to 1.

    Raises:
        ValueError: no images, shapes that do not fit, labels out of range, probabilities that are not finite.

    """
    _check(labels, probabilities, domains, classes)
    outcome = _outcome(labels, probabilities, np.arange(len(labels)) if groups is None else groups)
    k = len(classes)
    boot = _bootstrap(outcome, k, resamples, seed)
    found = domains.astype(str)
    parts = {str(name): outcome.among(found == name) for name in np.unique(found)}
    return {
        **_scored(outcome, boot),
        **_ranking(labels, probabilities),
        "domains": {name: _scored(part, _bootstrap(part, k, resamples, seed)) for name, part in parts.items()},
        "classes": {name: _scored_class(outcome, index, boot.f1[index]) for index, name in enumerate(classes)},
    }


def reliability(labels: Integers, probabilities: Floats) -> tuple[Floats, Floats, Integers]:
    """Return mean confidence, accuracy and number of images of each non-empty calibration bin: arrays (bins,)."""
    return _reliability(_outcome(labels, probabilities, np.arange(len(labels))))


@dataclass(frozen=True)
class _Outcome:
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

    def among(self, images: npt.NDArray[np.bool_]) -> "_Outcome":
        """Return the outcome for some of the images."""
        return _Outcome(**{name: values[images] for name, values in vars(self).items()})


@dataclass(frozen=True)
class _Boot:
    """What the bootstrap over groups gives: figures with intervals; None for an F1 of 0 or 1."""

    macro_f1: Interval | None
    f1: list[Interval | None]  # (classes,)
    log_loss: Interval
    brier: Interval


def _check(labels: Integers, probabilities: Floats, domains: Strings, classes: list[str]) -> None:
    n, k = len(labels), len(classes)
    if n == 0:
        raise ValueError("expected at least one image to score, got none")
    if (shapes := (probabilities.shape, domains.shape)) != ((n, k), (n,)):
        raise ValueError(f"expected shapes (({n}, {k}), ({n},)) of probabilities and domains, got {shapes}")
    if labels.min() < 0 or labels.max() >= k:
        raise ValueError(f"expected labels 0 to {k - 1}, got {labels.min()} to {labels.max()}")
    if odd := int((~np.isfinite(probabilities)).any(axis=1).sum()):
        raise ValueError(f"{odd} of {n} images have probabilities that are not finite")


def _outcome(labels: Integers, probabilities: Floats, groups: Integers) -> _Outcome:
    predicted = probabilities.argmax(axis=1)
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    # Ties go to the first class, as in argmax.
    ties_before = (probabilities == own) & (np.arange(probabilities.shape[1]) < labels[:, None])
    rank = ((probabilities > own) | ties_before).sum(axis=1)
    confidence = probabilities.max(axis=1).astype(np.float64)
    of_label = own[:, 0].astype(np.float64)
    squares = np.einsum("nk,nk->n", probabilities, probabilities, dtype=np.float64)
    return _Outcome(
        labels=labels,
        groups=groups,
        predicted=predicted,
        correct=predicted == labels,
        top5=rank < 5,
        log_loss=-np.log(np.clip(of_label, SMALLEST, 1.0)),
        brier=squares - 2 * of_label + 1,
        confidence=confidence,
        bins=np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1),
    )


def _scored(outcome: _Outcome, boot: _Boot) -> dict[str, Any]:
    accuracy = share(outcome.correct, outcome.groups)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": balanced_share(outcome.correct, outcome.labels, outcome.groups),
        "macro_f1": boot.macro_f1 or dict(accuracy),
        "top5": share(outcome.top5, outcome.groups),
        "log_loss": boot.log_loss,
        "brier": boot.brier,
        "ece": {"value": round(_calibration_error(outcome), DECIMALS)},
        "images": len(outcome.labels),
        "groups": len(np.unique(outcome.groups)),
    }


def _scored_class(outcome: _Outcome, index: int, f1: Interval | None) -> dict[str, Any]:
    actual, predicted = outcome.labels == index, outcome.predicted == index
    if not actual.any():
        return {"images": 0}
    recall = share(outcome.correct[actual], outcome.groups[actual])
    return {
        "recall": recall,
        "precision": share(outcome.correct[predicted], outcome.groups[predicted]),
        "f1": f1 or dict(recall),
        "images": int(actual.sum()),
    }


def _ranking(labels: Integers, probabilities: Floats) -> dict[str, Interval]:
    """Return ROC-AUC and average precision; nothing with images of a single class."""
    present = np.unique(labels)
    if len(present) < 2:
        return {}
    # One class at a time: with a matrix, scikit-learn copies all of it for every class.
    pairs = [(labels == index, np.ascontiguousarray(probabilities[:, index])) for index in present]
    figures = {"roc_auc": roc_auc_score, "average_precision": average_precision_score}
    means = {name: float(np.mean([figure(*pair) for pair in pairs])) for name, figure in figures.items()}
    return {name: {"value": round(mean, DECIMALS)} for name, mean in means.items()}


def _reliability(outcome: _Outcome) -> tuple[Floats, Floats, Integers]:
    images = np.bincount(outcome.bins, minlength=BINS)
    used = images > 0
    confidence = np.bincount(outcome.bins, outcome.confidence, BINS)[used] / images[used]
    accuracy = np.bincount(outcome.bins, outcome.correct, BINS)[used] / images[used]
    return confidence, accuracy, images[used].astype(np.int64)


def _calibration_error(outcome: _Outcome) -> float:
    """Return the expected calibration error less its bias.

    In a bin of n images the accuracy deviates from its expectation with a variance of a (1 - a) / n, which on average
    adds to an absolute gap: E|gap + noise| - |gap|, the mean of a folded normal distribution. As the observed gap
    stands for the true one, about half of what noise adds to a perfectly calibrated model's error stays; of an error
    that is real, nearly all is taken off that is noise (docs/retraining.md).
    """
    confidence, accuracy, images = _reliability(outcome)
    gap, noise = np.abs(confidence - accuracy), np.sqrt(accuracy * (1 - accuracy) / images)
    some = noise > 0
    ratio = gap[some] / noise[some]
    folded = np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + ratio * special.erf(ratio / np.sqrt(2))
    bias = np.zeros(len(gap))
    bias[some] = noise[some] * folded - gap[some]
    return float(max((images / images.sum()) @ (gap - bias), 0.0))


def _bootstrap(outcome: _Outcome, k: int, resamples: int, seed: int) -> _Boot:
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
    return _Boot(
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
