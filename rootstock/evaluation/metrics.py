"""Classification metrics with 95 % intervals, including calibration error.

Accuracy, top-5, recall and precision are shares of images and have Wilson intervals; the other figures have bootstrap
intervals. Each of those is a function of a few sums over images (true positives of a class, loss in a domain, ...).
One sparse matrix holds every image's contribution to every sum, so a resample is one matrix product.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]
Strings = npt.NDArray[Any]
Interval = dict[str, float]  # value, low, high

CONFIDENCE = 0.95  # of every interval
BINS = 15  # of equal width, for calibration: Guo et al. (2017), On Calibration of Modern Neural Networks
DECIMALS = 6
MAX_FLOATS = 2**21  # 16 MB of float64: bounds each array of a bootstrap chunk
SMALLEST = float(np.finfo(np.float32).eps)  # a probability below it counts as this in the log loss, as in scikit-learn


def score(
    labels: Integers,
    probabilities: Floats,
    domains: Strings,
    classes: list[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score predictions overall, per domain and per class, each figure with a 95 % interval.

    An interval is `{"value", "low", "high"}`, rounded to 6 decimals, never NaN, and always holds its value:

    - accuracy, top5 (the best min(5, k)), recall, precision: Wilson.
    - macro_f1, f1, log_loss: percentile bootstrap. If all or no images are correct, all resamples are equal, and a
      zero-width interval would claim certainty: F1 then takes the interval of recall, macro-F1 that of accuracy.
    - ece, expected calibration error: basic bootstrap, cut off at zero. Noise only adds to the ECE, and a resample is
      noisier than the sample, so percentile intervals are biased (coverage in docs/benchmarks.md).

    One set of resamples serves every bootstrap interval; memory does not grow with `resamples` × n.

    Args:
        labels: class indices (n,), n > 0.
        probabilities: (n, k), rows that sum to one.
        domains: domain of each image (n,).
        classes: the k names, in index order.
        resamples: bootstrap resamples.
        seed: of the resamples; equal arguments give equal results.

    Returns:
        `{"accuracy", "macro_f1", "top5", "log_loss", "ece", "domains": {domain: the same and "images"},
        "classes": {class: "accuracy" (its recall), "precision", "f1", "top5", "log_loss", "ece", "images"}}`.
        Macro-F1 averages over the classes that occur in labels or predictions, as scikit-learn does. A class
        without images has `"images": 0` and no figures. One never predicted has precision 0, interval 0 to 1.

    Raises:
        ValueError: no images, shapes that do not fit, labels out of range, probabilities that are not finite.

    """
    _check(labels, probabilities, domains, classes)
    names, places = np.unique(domains.astype(str), return_inverse=True)
    outcome = _outcome(labels, probabilities)
    boot = _bootstrap(outcome, places, len(names), len(classes), resamples, seed)
    return {
        **_scored(outcome, np.ones(len(labels), dtype=bool), boot, 0),
        "domains": {
            str(name): {**_scored(outcome, places == d, boot, 1 + d), "images": int((places == d).sum())}
            for d, name in enumerate(names)
        },
        "classes": {name: _scored_class(outcome, c, boot, 1 + len(names) + c) for c, name in enumerate(classes)},
    }


def reliability(labels: Integers, probabilities: Floats) -> tuple[Floats, Floats, Integers]:
    """Return mean confidence, accuracy and number of images of each non-empty calibration bin: arrays (bins,)."""
    outcome = _outcome(labels, probabilities)
    images = np.bincount(outcome.bins, minlength=BINS)
    used = images > 0
    confidence = np.bincount(outcome.bins, outcome.confidence, BINS)[used] / images[used]
    accuracy = np.bincount(outcome.bins, outcome.correct, BINS)[used] / images[used]
    return confidence, accuracy, images[used].astype(np.int64)


@dataclass(frozen=True)
class _Outcome:
    """The outcome for each image: arrays (n,)."""

    labels: Integers
    predicted: Integers
    correct: npt.NDArray[np.bool_]
    top5: npt.NDArray[np.bool_]
    loss: Floats
    confidence: Floats
    bins: Integers


@dataclass(frozen=True)
class _Boot:
    """Bootstrap intervals; the groups are: all images, each domain, each class."""

    macro_f1: list[Interval]  # (1 + domains,)
    f1: list[Interval]  # (classes,)
    log_loss: list[Interval]  # (1 + domains + classes,)
    ece: list[Interval]  # (1 + domains + classes,)


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


def _outcome(labels: Integers, probabilities: Floats) -> _Outcome:
    predicted = probabilities.argmax(axis=1)
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    # Ties go to the first class, as in argmax.
    ties_before = (probabilities == own) & (np.arange(probabilities.shape[1]) < labels[:, None])
    rank = ((probabilities > own) | ties_before).sum(axis=1)
    confidence = probabilities.max(axis=1).astype(np.float64)
    return _Outcome(
        labels=labels,
        predicted=predicted,
        correct=predicted == labels,
        top5=rank < 5,
        loss=-np.log(np.clip(own[:, 0].astype(np.float64), SMALLEST, 1.0)),
        confidence=confidence,
        bins=np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1),
    )


def _share(hits: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_]) -> Interval:
    """Return the share of hits among images with its Wilson interval; 0, from 0 to 1, without images."""
    n, successes = int(among.sum()), int((hits & among).sum())
    if n == 0:
        return _interval(0.0, 0.0, 1.0)
    wilson = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return _interval(successes / n, wilson.low, wilson.high)


def _interval(value: float, low: float, high: float) -> Interval:
    """Round (never to -0.0) and include the value, which a bootstrap of a biased figure may exclude."""
    ends = {"value": value, "low": min(low, value), "high": max(high, value)}
    return {name: round(float(end), DECIMALS) + 0.0 for name, end in ends.items()}


def _scored(outcome: _Outcome, among: npt.NDArray[np.bool_], boot: _Boot, group: int) -> dict[str, Any]:
    accuracy = _share(outcome.correct, among)
    return {
        "accuracy": accuracy,
        "macro_f1": _bootstrap_or_share(boot.macro_f1[group], accuracy),
        "top5": _share(outcome.top5, among),
        "log_loss": boot.log_loss[group],
        "ece": boot.ece[group],
    }


def _scored_class(outcome: _Outcome, index: int, boot: _Boot, group: int) -> dict[str, Any]:
    actual = outcome.labels == index
    if not actual.any():
        return {"images": 0}
    recall = _share(outcome.correct, actual)
    return {
        "accuracy": recall,
        "precision": _share(outcome.correct, outcome.predicted == index),
        "f1": _bootstrap_or_share(boot.f1[index], recall),
        "top5": _share(outcome.top5, actual),
        "log_loss": boot.log_loss[group],
        "ece": boot.ece[group],
        "images": int(actual.sum()),
    }


def _bootstrap_or_share(f1: Interval, share: Interval) -> Interval:
    return f1 if 0 < f1["value"] < 1 else dict(share)


def _bootstrap(o: _Outcome, places: Integers, d: int, k: int, resamples: int, seed: int) -> _Boot:
    """Resample the images; the first "resample" is the sample itself and gives the values.

    The sums, with d domains, k classes and b bins: true positives, predictions and images of each class in
    each domain, (d, k) each; loss by domain (d) and by class (k); correct minus confidence by bin, in each
    domain (d, b) and in each class (k, b).
    """
    calibration = o.correct - o.confidence
    parts = [
        (places * k + o.labels, o.correct, (d, k)),
        (places * k + o.predicted, None, (d, k)),
        (places * k + o.labels, None, (d, k)),
        (places, o.loss, (d,)),
        (o.labels, o.loss, (k,)),
        (places * BINS + o.bins, calibration, (d, BINS)),
        (o.labels * BINS + o.bins, calibration, (k, BINS)),
    ]
    adds = sparse.vstack([_adds(where, what, shape) for where, what, shape in parts], format="csr")
    ends = np.cumsum([np.prod(shape) for _, _, shape in parts])[:-1]
    draws = []
    at_once = max(1, MAX_FLOATS // max(adds.shape))
    for weights in _weights(len(o.labels), resamples, seed, at_once):
        sums = [
            part.reshape(len(weights), *shape)
            for part, (_, _, shape) in zip(np.split((adds @ weights.T).T, ends, axis=1), parts, strict=True)
        ]
        draws.append(_figures(sums))
    macro_f1, f1, log_loss, ece = (np.concatenate(figure) for figure in zip(*draws, strict=True))
    return _Boot(_intervals(macro_f1), _intervals(f1), _intervals(log_loss), _intervals(ece, basic=True))


def _adds(where: Integers, what: npt.NDArray[Any] | None, shape: tuple[int, ...]) -> sparse.csr_matrix:
    """Return the sparse matrix (sums, n) in which image i adds what[i] (1 if None) to sum where[i]."""
    n = len(where)
    values = np.ones(n) if what is None else what.astype(np.float64)
    return sparse.csr_matrix((values, (where, np.arange(n))), shape=(int(np.prod(shape)), n))


def _weights(n: int, resamples: int, seed: int, at_once: int) -> Iterator[Floats]:
    """Yield the count of each image in each resample, (up to at_once, n); the first is the sample itself."""
    draw = np.random.default_rng(seed)
    for start in range(0, resamples + 1, at_once):
        rows = range(start, min(start + at_once, resamples + 1))
        counts = [np.bincount(draw.integers(0, n, n), minlength=n) if row else np.ones(n) for row in rows]
        yield np.stack(counts).astype(np.float64)


def _figures(sums: list[Floats]) -> tuple[Floats, Floats, Floats, Floats]:
    """Compute macro-F1 (r, 1 + d), F1 (r, k), log loss and ECE (r, 1 + d + k) of r resamples; NaN without images."""
    hits, predictions, images = (np.concatenate([s.sum(axis=1, keepdims=True), s], axis=1) for s in sums[:3])
    loss = np.concatenate([sums[3].sum(axis=1, keepdims=True), sums[3], sums[4]], axis=1)
    gaps = np.concatenate([sums[5].sum(axis=1, keepdims=True), sums[5], sums[6]], axis=1)
    group_images = np.concatenate([images.sum(axis=2), images[:, 0]], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * hits / (predictions + images)  # (r, 1 + d, k)
        macro_f1 = np.nansum(f1, axis=2) / (predictions + images > 0).sum(axis=2)
        log_loss = loss / group_images
        ece = np.abs(gaps).sum(axis=2) / group_images
    return macro_f1, f1[:, 0], log_loss, ece


def _intervals(draws: Floats, *, basic: bool = False) -> list[Interval]:
    """Return percentile intervals of draws (r, columns), or basic ones: the quantiles mirrored at the value.

    A resample deviates from the sample as the sample does from the truth; `basic` corrects that bias.
    """
    value, tail = draws[0], (1 - CONFIDENCE) / 2
    low, high = np.zeros_like(value), np.zeros_like(value)
    # A class without images has no figures in any resample; its interval is not used.
    some = np.isfinite(value)
    low[some], high[some] = np.nanquantile(draws[:, some], [tail, 1 - tail], axis=0)
    if basic:
        low, high = np.maximum(2 * value - high, 0), 2 * value - low
    return [_interval(*ends) for ends in zip(value, low, high, strict=True)]
