"""How right logits are, image by image: their log loss and accuracy, of one class per image or of any number.

Of any number of classes, each is a decision of its own, made at a probability of one half.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from rootstock.dataset.tables import Labels


def log_losses(logits: NDArray[np.floating[Any]], labels: Labels) -> NDArray[np.float64]:
    """Return the log loss of each image (n,) in nats; of any number of classes, the mean over these.

    Args:
        logits: (n, k).
        labels: class indices (n,), or which classes each image has (n, k).
    """
    scores = logits.astype(np.float64)
    losses: NDArray[np.float64]
    if labels.ndim == 1:
        losses = -log_softmax(scores, axis=1)[np.arange(len(labels)), labels]
    else:
        losses = (np.logaddexp(0, scores) - labels * scores).mean(axis=1)
    return losses


def accuracies(logits: NDArray[np.floating[Any]], labels: Labels) -> NDArray[np.float64]:
    """Return the accuracy of each image (n,): 1 or 0, or, of any number of classes, the overlap with its labels.

    Args:
        logits: (n, k).
        labels: class indices (n,), or which classes each image has (n, k).
    """
    if labels.ndim == 2:
        return overlaps(logits > 0, labels)
    hits: NDArray[np.float64] = (logits.argmax(axis=1) == labels).astype(np.float64)
    return hits


def overlaps(predicted: NDArray[np.bool_], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the overlap of predicted and true labels of each image (n,): what both have, of what either has.

    This is accuracy as Godbole and Sarawagi (2004) define it for any number of classes; 1 where neither has any.
    """
    both, either = (predicted & labels).sum(axis=1), (predicted | labels).sum(axis=1)
    shares: NDArray[np.float64] = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    return shares
