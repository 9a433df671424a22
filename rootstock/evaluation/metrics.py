"""Classification metrics with 95 % intervals that count groups of images, not images.

Accuracy, balanced accuracy, top-5, recall, precision and F1 have Wilson intervals at the effective sample size
(intervals.py), losses t intervals on a logarithmic scale. Figures whose intervals would not cover what they promise
have none: calibration error, ROC-AUC, average precision. docs/retraining.md has the coverage.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from rootstock.evaluation import class_figures
from rootstock.evaluation.class_means import balanced_share, has_enough_of_each_class
from rootstock.evaluation.intervals import (
    Floats,
    Integers,
    Interval,
    WeightedImages,
    mean_loss,
    no_interval,
    share,
    wilson,
)
from rootstock.system.parallel import map_rows, ordered_map

Strings = npt.NDArray[Any]

SMALLEST = float(np.finfo(np.float32).eps)  # a probability below it counts as this in the log loss, as in scikit-learn
LARGEST = {"log_loss": float(-np.log(SMALLEST)), "brier": 2.0}  # of a single image
BINS = 15  # of equal width, for calibration: Guo et al. (2017), On Calibration of Modern Neural Networks


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

    def among(self, images: npt.NDArray[np.bool_]) -> "Outcome":
        """Return the outcome for some of the images."""
        return Outcome(**{name: values[images] for name, values in vars(self).items()})


def score(
    labels: Integers,
    probabilities: Floats,
    domains: Strings,
    classes: list[str],
    *,
    groups: Integers | None = None,
) -> dict[str, Any]:
    """Score predictions overall, per domain and per class.

    A figure is `{"value", "low", "high"}` with its 95 % interval, or `{"value"}`; rounded to 6 decimals, never NaN:

    - accuracy, balanced_accuracy (the mean recall), macro_f1, top5 (the best min(5, k)), recall, precision, f1: Wilson.
    - log_loss, brier (the squared error, summed over classes, 0 to 2): symmetric on a logarithmic scale.
    - none of them has an interval where images come in fewer than 20 groups, those of a class in fewer than 12.
      macro_f1 has none where images are grouped and a class comes in fewer than 12 groups; otherwise, where the median
      class has fewer than 4 images.
    - ece, expected calibration error, less what noise adds to it (Kumar et al. 2019); at least 0; no interval.
    - roc_auc, average_precision: one against rest, averaged over the classes that occur; no interval.

    Args:
        labels: class indices (n,), n > 0.
        probabilities: (n, k), rows that sum to one.
        domains: domain of each image (n,).
        classes: the k names, in index order.
        groups: group of each image (n,), as any integers; None if every image is its own.

    Returns:
        The figures overall, with "images", "groups", "domains": {domain: the same without roc_auc and
        average_precision} and "classes": {class: "recall", "precision", "f1", "images"}. Macro-F1 averages over the
        classes that occur in labels or predictions, as scikit-learn does. A class without images has `"images": 0` and
        no figures. One never predicted has precision 0, interval 0 to 1.

    Raises:
        ValueError: no images, shapes that do not fit, labels out of range, probabilities that are not finite.

    """
    _check(labels, probabilities, domains, classes)
    k, groups = len(classes), np.arange(len(labels)) if groups is None else groups
    outcome = _outcome(labels, probabilities, groups)
    found = domains.astype(str)
    parts = {str(name): outcome.among(found == name) for name in np.unique(found)}
    return {
        **_scored(outcome, k),
        **_ranking(labels, probabilities),
        "domains": {name: _scored(part, k) for name, part in parts.items()},
        "classes": {name: _scored_class(outcome, index) for index, name in enumerate(classes)},
    }


def reliability(confidence: Floats, correct: npt.NDArray[np.bool_]) -> tuple[Floats, Floats, Integers]:
    """Return mean confidence, accuracy and number of images of each non-empty calibration bin: arrays (bins,).

    Args:
        confidence: the probability of the predicted class of each image (n,).
        correct: whether it is the label (n,).
    """
    confidence = confidence.astype(np.float64)
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    images = np.bincount(bins, minlength=BINS)
    used = images > 0
    mean = np.bincount(bins, confidence, BINS)[used] / images[used]
    accuracy = np.bincount(bins, correct, BINS)[used] / images[used]
    return mean, accuracy, images[used].astype(np.int64)


def _check(labels: Integers, probabilities: Floats, domains: Strings, classes: list[str]) -> None:
    n, k = len(labels), len(classes)
    if n == 0:
        raise ValueError("expected at least one image to score, got none")
    if (shapes := (probabilities.shape, domains.shape)) != ((n, k), (n,)):
        raise ValueError(f"expected shapes (({n}, {k}), ({n},)) of probabilities and domains, got {shapes}")
    if labels.min() < 0 or labels.max() >= k:
        raise ValueError(f"expected labels 0 to {k - 1}, got {labels.min()} to {labels.max()}")
    if odd := sum(map_rows(lambda rows: int((~np.isfinite(probabilities[rows])).any(axis=1).sum()), n, k)):
        raise ValueError(f"{odd} of {n} images have probabilities that are not finite")


def _outcome(labels: Integers, probabilities: Floats, groups: Integers) -> Outcome:
    parts = map_rows(lambda rows: _outcome_of(labels[rows], probabilities[rows], groups[rows]), *probabilities.shape)
    return Outcome(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _outcome_of(labels: Integers, probabilities: Floats, groups: Integers) -> Outcome:
    predicted = probabilities.argmax(axis=1)
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    # Ties go to the first class, as in argmax.
    ties_before = (probabilities == own) & (np.arange(probabilities.shape[1]) < labels[:, None])
    rank = ((probabilities > own) | ties_before).sum(axis=1)
    of_label = own[:, 0].astype(np.float64)
    squares = np.einsum("nk,nk->n", probabilities, probabilities, dtype=np.float64)
    return Outcome(
        labels=labels,
        groups=groups,
        predicted=predicted,
        correct=predicted == labels,
        top5=rank < 5,
        log_loss=-np.log(np.clip(of_label, SMALLEST, 1.0)),
        brier=squares - 2 * of_label + 1,
        confidence=probabilities.max(axis=1).astype(np.float64),
    )


def _scored(outcome: Outcome, k: int) -> dict[str, Any]:
    return {
        "accuracy": share(outcome.correct, outcome.groups),
        "balanced_accuracy": balanced_share(outcome.correct, outcome.labels, outcome.groups),
        "macro_f1": _macro_f1(outcome, k),
        "top5": share(outcome.top5, outcome.groups),
        "log_loss": mean_loss(outcome.log_loss, outcome.groups, LARGEST["log_loss"]),
        "brier": mean_loss(outcome.brier, outcome.groups, LARGEST["brier"]),
        "ece": no_interval(calibration_error(outcome.confidence, outcome.correct)),
        "images": len(outcome.labels),
        "groups": len(np.unique(outcome.groups)),
    }


def _macro_f1(outcome: Outcome, k: int) -> Interval:
    """Return the mean of F1 over the classes that occur in labels or predictions."""
    f1, occurrences = _f1(outcome, k)
    occurs = occurrences > 0
    added = 2.0 * outcome.correct / occurrences[outcome.labels]
    expected = (f1[classes] / occurrences[classes] for classes in (outcome.labels, outcome.predicted))
    deviations = (added - sum(expected)) / occurs.sum()
    images, value = WeightedImages.of(outcome.groups), float(f1[occurs].mean())
    if not has_enough_of_each_class(outcome.labels, outcome.groups, images):
        return no_interval(value)
    # F1 of a class that is only predicted is 0, whatever the images tell.
    common = np.where(np.bincount(outcome.labels, minlength=k) > 0, occurrences, np.inf)
    rarer = 1 / np.minimum(common[outcome.labels], common[outcome.predicted])
    # Recall and precision of each class are two means that share its hits; one and a half cover best in simulation.
    means = 3 * int(occurs.sum()) // 2
    return wilson(value, deviations, outcome.correct, images, means=means, rarity=rarer / rarer.sum())


def _f1(outcome: Outcome, k: int) -> tuple[Floats, Floats]:
    """Return F1 of each class (k,), and how often it occurs in labels and predictions (k,), 2 for a hit; 0 for none."""
    hits, labels, predictions = (
        np.bincount(classes, minlength=k).astype(np.float64)
        for classes in (outcome.labels[outcome.correct], outcome.labels, outcome.predicted)
    )
    occurrences = labels + predictions
    return 2 * hits / np.maximum(occurrences, 1), occurrences


def _scored_class(outcome: Outcome, index: int) -> dict[str, Any]:
    return class_figures.score(outcome.labels == index, outcome.predicted == index, outcome.groups)


def _ranking(labels: Integers, probabilities: Floats) -> dict[str, Interval]:
    """Return ROC-AUC and average precision; nothing with images of a single class."""
    present = np.unique(labels)
    if len(present) < 2:
        return {}
    found = list(ordered_map(lambda index: class_figures.rank(labels == index, probabilities[:, index]), present))
    roc_auc, precision = (float(np.mean(figures)) for figures in zip(*found, strict=True))
    return {"roc_auc": no_interval(roc_auc), "average_precision": no_interval(precision)}


def calibration_error(confidence: Floats, correct: npt.NDArray[np.bool_]) -> float:
    """Return the expected calibration error less its bias, of probabilities (n,) and what came true of them (n,).

    In a bin of n images the accuracy deviates from its expectation with a variance of a (1 - a) / n, which on average
    adds to an absolute gap: E|gap + noise| - |gap|, the mean of a folded normal distribution. As the observed gap
    stands for the true one, about half of what noise adds to a perfectly calibrated model's error stays; of an error
    that is real, nearly all is taken off that is noise (docs/retraining.md).
    """
    confidence, accuracy, images = reliability(confidence, correct)
    gap, noise = np.abs(confidence - accuracy), np.sqrt(accuracy * (1 - accuracy) / images)
    some = noise > 0
    ratio = gap[some] / noise[some]
    folded = np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + ratio * special.erf(ratio / np.sqrt(2))
    bias = np.zeros(len(gap))
    bias[some] = noise[some] * folded - gap[some]
    return float(max((images / images.sum()) @ (gap - bias), 0.0))
