"""The mean direction of each class's features."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from rootstock.training.head import normalised

Array = NDArray[np.float32]


def unit_class_means(
    batches: Iterable[tuple[Array, NDArray[np.int64]]], classes: int, width: int, prepare: Callable[[Array], Array]
) -> Array:
    """Return the means of each class's features, prepared and scaled to unit length, themselves so scaled.

    Args:
        batches: features (n, width) and class indices (n,).
        classes: how many (k).
        width: of the features.
        prepare: what is done to features (n, width) before they are scaled.

    Returns:
        (k, width) float32.
    """
    sums = torch.zeros(classes, width, dtype=torch.float64)
    for x, labels in batches:
        sums.index_add_(0, torch.from_numpy(labels), torch.from_numpy(normalised(prepare(x))).double())
    return normalised(sums.float().numpy())
