"""None of these: how unlike all training images an image is, by the features of the model itself.

The score is one minus the cosine similarity of standardised features to the nearest class mean. On classes left out it
tells as much as the classifier's own confidence, and on photos of something else far more; the energy of the logits
(Liu et al. 2020), which needs no class means, tells less (docs/benchmarks.md, "None of these").
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from rootstock.dataset.tables import Labels
from rootstock.system.files import reading
from rootstock.training.class_means import unit_class_means
from rootstock.training.head import normalised
from rootstock.training.principal_axes import invert_deviations, mean_and_variance

FILE = "novelty.safetensors"
REFUSED = 0.05  # share of the validation images that the threshold calls unknown
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Novelty:
    """Class means (k, d) of standardised features, at unit length, and the score above which an image is unknown.

    Features are standardised by `center` (d,) and `scale` (d,); all arrays are float32.
    """

    center: Array
    scale: Array
    means: Array
    threshold: float = float("inf")

    def score(self, features: Array) -> Array:
        """Return the novelty (n,) of features (n, d): 0 for a class mean, 1 for features orthogonal to all, up to 2."""
        similarity = normalised((features - self.center) * self.scale) @ self.means.T
        scores: Array = 1 - similarity.max(axis=1)
        return scores

    def with_threshold(self, validation: Array) -> "Novelty":
        """Return it with a threshold that refuses a share `REFUSED` of validation images with these scores (n,)."""
        return replace(self, threshold=float(np.quantile(validation, 1 - REFUSED)))


def fit(batches: Iterable[tuple[Array, Labels]], k: int) -> Novelty:
    """Compute the class means.

    Args:
        batches: features (n, d) and labels, (n,) or (n, k), of training images; iterated twice.
        k: number of classes, each with an image.
    """
    mean, variance = mean_and_variance((torch.from_numpy(x), None) for x, _ in batches)
    center = mean.numpy().astype(np.float32)
    scale = invert_deviations(mean, variance).numpy().astype(np.float32)
    return Novelty(center, scale, unit_class_means(batches, k, len(center), lambda x: (x - center) * scale))


def save(novelty: Novelty, path: Path) -> None:
    """Save the arrays as safetensors; model.json has the threshold."""
    save_file({"center": novelty.center, "scale": novelty.scale, "means": novelty.means}, path)


def load(path: Path, threshold: float) -> Novelty:
    """Load what `save` wrote.

    Raises:
        DamagedError: the file is damaged.
    """
    with reading(path):
        return Novelty(**load_file(path), threshold=threshold)
