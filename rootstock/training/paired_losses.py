"""Compare models on the same validation images by their log loss after calibration, groups of images as a whole."""

import numpy as np
from numpy.typing import NDArray

from rootstock.dataset.tables import Labels
from rootstock.training import calibration, outcomes
from rootstock.training.class_weights import image_weights


def calibrated_losses(
    logits: NDArray[np.float32], labels: Labels, weights: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """Return the log loss of each image (n,) after calibration on the same images, times the weight of its class.

    Args:
        logits: (n, k).
        labels: class indices (n,), or which classes each image has (n, k).
        weights: of classes (k,); None for equal ones.
    """
    scaled = logits.astype(np.float64) / calibration.fit_temperature(logits, labels)
    return outcomes.log_losses(scaled, labels) * image_weights(weights, labels)


def standard_error(differences: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """Return the standard error of the mean of differences (n,), of which those of a group (n,) are not independent."""
    codes = np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(codes, differences - differences.mean())
    count = len(sums)
    return float(np.sqrt(count / max(count - 1, 1) * (sums**2).sum()) / len(differences))
