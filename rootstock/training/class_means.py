"""The mean direction of each class's features."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from rootstock.dataset.tables import Labels
from rootstock.training.head import normalised

Array = NDArray[np.float32]


def unit_class_means(
    batches: Iterable[tuple[Array, Labels]], classes: int, width: int, prepare: Callable[[Array], Array]
) -> Array:
    """Return the means of each class's features, prepared and scaled to unit length, themselves so scaled.

    Args:
        batches: features (n, width) and class indices (n,), or which classes each image has (n, classes): it counts in
            the means of all of them.
        classes: how many (k).
        width: of the features.
        prepare: what is done to features (n, width) before they are scaled.

    Returns:
        (k, width) float32.
    """
    sums = torch.zeros(classes, width, dtype=torch.float64)
    for x, labels in batches:
        directions, of_images = torch.from_numpy(normalised(prepare(x))).double(), torch.from_numpy(labels)
        if labels.ndim == 1:
            sums.index_add_(0, of_images, directions)
        else:
            sums += of_images.double().T @ directions
    return normalised(sums.float().numpy())
