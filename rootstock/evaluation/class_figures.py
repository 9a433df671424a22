"""Figures of one class against all others: recall, precision and F1 with their intervals, and how it is ranked."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rootstock.evaluation.intervals import Floats, Integers, Interval, WeightedImages, share, wilson

Booleans = NDArray[np.bool_]


def score(actual: Booleans, predicted: Booleans, groups: Integers) -> dict[str, Any]:
    """Return recall, precision and F1 of a class, and its number of images; that alone if it has none.

    Args:
        actual: which images are of the class (n,).
        predicted: which are said to be (n,).
        groups: group of each image (n,), as any integers.
    """
    if not actual.any():
        return {"images": 0}
    return {
        "recall": share(predicted[actual], groups[actual], within_class=True),
        "precision": share(actual[predicted], groups[predicted], within_class=True),
        "f1": _f1(actual, predicted, groups),
        "images": int(actual.sum()),
    }


def _f1(actual: Booleans, predicted: Booleans, groups: Integers) -> Interval:
    """Return F1 of a class, the share of hits among its labels and predictions together."""
    either = actual | predicted
    correct, occurs = (actual & predicted)[either], actual[either].astype(np.float64) + predicted[either]
    images = WeightedImages.of(groups[either], occurs / occurs.sum())
    value = 2 * float(correct.sum()) / float(occurs.sum())
    return wilson(value, images.weights * (correct - value), correct, images, within_class=True)


def rank(is_class: Booleans, probabilities: Floats) -> tuple[float, float]:
    """Return ROC-AUC (Mann and Whitney 1947) and average precision of a class, as scikit-learn's functions do.

    Only the class's own images are ranked among all: with a thousand classes that takes a tenth of the time.
    """
    every, own = np.sort(probabilities), np.sort(probabilities[is_class])
    images, below = len(own), np.searchsorted(every, own)
    below_of_own = np.searchsorted(own, own)
    ties = np.searchsorted(every, own, "right") - below
    ties_of_own = np.searchsorted(own, own, "right") - below_of_own
    others_below = below - below_of_own + (ties - ties_of_own) / 2  # a tie counts half
    precision = (images - below_of_own) / (len(every) - below)  # among all that are at least as probable
    return float(others_below.mean()) / (len(every) - images), float(precision.mean())
