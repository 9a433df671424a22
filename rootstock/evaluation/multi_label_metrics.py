"""Metrics of images that may have any number of classes, with 95 % intervals that count groups of images, not images.

Each class is a decision of its own, at a threshold of its own. See metrics.py for the intervals.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rootstock.dataset import label_sets
from rootstock.evaluation import class_figures
from rootstock.evaluation.class_means import has_enough_of_each_class
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
from rootstock.evaluation.metrics import LARGEST, SMALLEST, Strings, calibration_error
from rootstock.system.parallel import ordered_map
from rootstock.training.outcomes import overlaps

Booleans = NDArray[np.bool_]
RANKING = ("roc_auc", "average_precision")


@dataclass(frozen=True)
class Outcome:
    """What a model says of n images and k classes: `labels`, `predicted` and `probabilities` (n, k), `groups` (n,)."""

    labels: Booleans
    predicted: Booleans
    probabilities: NDArray[np.float32]
    groups: Integers

    def among(self, images: Booleans) -> "Outcome":
        """Return the outcome for some of the images."""
        return Outcome(**{name: values[images] for name, values in vars(self).items()})


def score(
    labels: Booleans, probabilities: NDArray[np.float32], thresholds: NDArray[np.float32], domains: Strings,
    classes: list[str], groups: Integers,
) -> dict[str, Any]:  # fmt: skip
    """Score predictions overall, per domain and per class.

    A figure is `{"value", "low", "high"}` with its 95 % interval, or `{"value"}`; rounded to 6 decimals, never NaN:

    - accuracy: the mean overlap of predicted and true labels, what both have of what either has (outcomes.overlaps);
      exact_match: the share of images whose labels are all right.
    - macro_f1: the mean over classes that occur in labels or predictions, without an interval where classes are as rare
      as for metrics.score; micro_f1: of all decisions together.
    - average_precision, the mean over classes that occur (mAP), and roc_auc: no interval.
    - log_loss and brier: of each decision, the mean over classes. ece: of all decisions, less what noise adds to it.

    Args:
        labels: which classes each image has (n, k), n > 0.
        probabilities: of each class (n, k).
        thresholds: from which on an image is said to have a class (k,).
        domains: domain of each image (n,).
        classes: the k names, in index order.
        groups: group of each image (n,), as any integers.

    Returns:
        The figures overall, with "images", "groups" and

        - "domains": {domain: the same without average_precision and roc_auc};
        - "classes": {class: "recall", "precision", "f1", "average_precision", "threshold", "images"}; of a class
          without images there are only the last two;
        - "constant": {"label", "accuracy"} of the set of labels that is best if every image gets the same.

    Raises:
        ValueError: no images, shapes that do not fit, probabilities that are not finite.
    """
    n, k = len(labels), len(classes)
    if n == 0 or labels.shape != (n, k) or probabilities.shape != (n, k) or len(domains) != n:
        raise ValueError(
            f"expected labels and probabilities ({n}, {k}) and domains ({n},) of images, got {labels.shape}, "
            f"{probabilities.shape} and {domains.shape}"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("some images have probabilities that are not finite")
    outcome = Outcome(labels, probabilities >= thresholds, probabilities, groups)
    found = domains.astype(str)
    parts = {str(name): outcome.among(found == name) for name in np.unique(found)}
    ranks = _ranks(labels, probabilities)
    return {
        **_scored(outcome),
        "constant": _best_constant(labels, classes),
        **{name: no_interval(float(np.mean([rank[name] for rank in ranks.values()]))) for name in RANKING if ranks},
        "domains": {name: _scored(part) for name, part in parts.items()},
        "classes": {
            name: class_figures.score(labels[:, index], outcome.predicted[:, index], groups)
            | ({"average_precision": no_interval(ranks[index]["average_precision"])} if index in ranks else {})
            | {"threshold": round(float(thresholds[index]), 6)}
            for index, name in enumerate(classes)
        },
    }


def _ranks(labels: Booleans, probabilities: NDArray[np.float32]) -> dict[int, dict[str, float]]:
    """Return ROC-AUC and average precision of each class that some images have, and others have not."""
    some = np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0)).tolist()
    found = ordered_map(lambda index: class_figures.rank(labels[:, index], probabilities[:, index]), some)
    return {index: dict(zip(RANKING, rank, strict=True)) for index, rank in zip(some, found, strict=True)}


def _scored(outcome: Outcome) -> dict[str, Any]:
    labels, predicted, groups = outcome.labels, outcome.predicted, outcome.groups
    chances = outcome.probabilities.astype(np.float64)
    of_answer = np.where(labels, chances, 1 - chances)
    log_loss = -np.log(np.clip(of_answer, SMALLEST, 1.0)).mean(axis=1)
    return {
        "accuracy": share(overlaps(predicted, labels), groups),
        "exact_match": share((predicted == labels).all(axis=1), groups),
        "macro_f1": _macro_f1(outcome),
        "micro_f1": _micro_f1(outcome),
        "log_loss": mean_loss(log_loss, groups, LARGEST["log_loss"]),
        "brier": mean_loss(((1 - of_answer) ** 2).mean(axis=1), groups, 1.0),
        "ece": no_interval(calibration_error(chances.ravel(), labels.ravel())),
        "images": len(labels),
        "groups": len(np.unique(groups)),
    }


def _best_constant(labels: Booleans, classes: list[str]) -> dict[str, Any]:
    """Return the labels that, given to every image, reach the highest accuracy, among the most frequent 0, 1, 2, ..."""
    order = np.argsort(-labels.sum(axis=0), kind="stable")
    given = np.zeros((len(classes) + 1, len(classes)), bool)
    given[:, order] = np.tri(len(classes) + 1, len(classes), -1, dtype=bool)
    reached = [float(overlaps(np.broadcast_to(own, labels.shape), labels).mean()) for own in given]
    best = int(np.argmax(reached))
    return {"label": label_sets.join(np.asarray(classes)[given[best]]), "accuracy": round(reached[best], 6)}


def _counts(outcome: Outcome) -> tuple[Floats, Floats]:
    """Return of each image and class 2 for a hit (n, k), and how often it occurs in label and prediction (n, k)."""
    hits = 2.0 * (outcome.labels & outcome.predicted)
    return hits, outcome.labels.astype(np.float64) + outcome.predicted


def _macro_f1(outcome: Outcome) -> Interval:
    hits, occurs = _counts(outcome)
    some = occurs.any(axis=0)
    if not some.any():
        return no_interval(0.0)
    hits, occurs = hits[:, some], occurs[:, some]
    f1 = hits.sum(axis=0) / occurs.sum(axis=0)
    deviations = ((hits - f1 * occurs) / occurs.sum(axis=0)).mean(axis=1)
    images, value = WeightedImages.of(outcome.groups), float(f1.mean())
    having, classes = np.nonzero(outcome.labels)
    if not has_enough_of_each_class(classes, outcome.groups[having], images):
        return no_interval(value)
    labelled = outcome.labels[:, some].any(axis=0)  # F1 of the others is 0, whatever the images tell
    rarest = np.where((occurs > 0) & labelled, 1 / occurs.sum(axis=0), 0).max(axis=1)
    overlap, means = overlaps(outcome.predicted, outcome.labels), 3 * int(some.sum()) // 2  # as in metrics.py
    return wilson(value, deviations, overlap, images, means=means, rarity=rarest / rarest.sum())


def _micro_f1(outcome: Outcome) -> Interval:
    hits, occurs = (part.sum(axis=1) for part in _counts(outcome))
    if not occurs.any():
        return no_interval(0.0)
    value = float(hits.sum() / occurs.sum())
    deviations = (hits - value * occurs) / occurs.sum()
    images = WeightedImages.of(outcome.groups)
    return wilson(value, deviations, overlaps(outcome.predicted, outcome.labels), images)
