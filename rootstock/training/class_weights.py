"""Weights of classes in the loss, for data in which some classes are rare."""

import numpy as np
from numpy.typing import NDArray

from rootstock.config.params import ClassWeight


def class_weights(labels: NDArray[np.int64], classes: int, chosen: ClassWeight) -> NDArray[np.float32] | None:
    """Return the weight of each class (k,): n / (k n_c), with which each counts the same; None if all weights are 1.

    They average to 1 over the training images, so that learning rates and L2 strengths keep their meaning.

    Args:
        labels: of the training images (n,).
        classes: how many (k); one that does not occur has weight 0.
        chosen: none or balanced.
    """
    if chosen == "none":
        return None
    counts = np.bincount(labels, minlength=classes)
    present = counts > 0
    weights = np.zeros(classes, np.float32)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def image_weights(weights: NDArray[np.float32] | None, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the weight of each image (n,) in a mean over them: that of its class (k,), scaled to average to 1."""
    if weights is None:
        return np.ones(len(labels))
    found = weights[labels].astype(np.float64)
    return found / found.mean() if found.any() else np.ones(len(labels))
