"""Heads that take one or two passes over the features: ridge regression, class prototypes, nearest neighbours.

Their scores are no logits: ridge regression's are targets of 0 and 1, prototypes' are cosines. They are scaled by the
temperature that fits the validation images, so that all heads give comparable probabilities and fine-tuning starts from
calibrated logits.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from rootstock.features.reader import Features
from rootstock.training import calibration
from rootstock.training.class_means import unit_class_means
from rootstock.training.class_weights import image_weights
from rootstock.training.head import Head, normalised, scores
from rootstock.training.principal_axes import PrincipalAxes

SHARPNESS = 20.0  # of scores around 0 to 1, so that their temperature lies in the range that is searched
RIDGE_L2 = tuple(10.0**exponent for exponent in np.arange(6, -1.5, -0.5))  # of targets 0 and 1, from strong to weak
NEIGHBOURS = (50, 20, 10, 5)
MAX_EXEMPLAR_BYTES = 512 * 2**20
Loss = Callable[[NDArray[np.float32]], float]  # of logits (n, k) of the validation images, after calibration


def fit_ridge(
    train: Features, val: Features, classes: list[str], axes: PrincipalAxes, weights: NDArray[np.float32] | None,
    loss: Loss,
) -> Head:  # fmt: skip
    """Fit ridge regression of class indicators for every strength in RIDGE_L2, and keep the best on `val`.

    minimises over W (k, r), b (k):   1/(2n) Σ_i w_i ||W z_i + b - y_i||²  +  l2/(2n) ||W||²

    On the principal axes z the Gram matrix is diagonal, so that one eigendecomposition serves every strength, for more
    images than features and for fewer (as big_vision's fewshot_lsr does), and the solution needs no more of the
    features than their sums by class.

    Args:
        train: features and labels.
        val: decides which strength is kept.
        classes: names in index order.
        axes: of the training images, with the same class weights.
        weights: of classes (k,), averaging to 1 over the training images; None for equal ones.
        loss: of logits on `val`, by which a strength is chosen.
    """
    k, n = len(classes), len(train)
    sums, counts = _class_sums(train, k, weights)
    by_class = (sums - counts[:, None] * axes.mean) @ axes.projection / n  # (k, r)

    def solved(l2: float) -> Head:
        weight = by_class / (axes.variances + l2 / n) @ axes.projection.T
        bias = counts / n - weight @ axes.mean
        return Head(weight.float().numpy(), bias.float().numpy(), classes, float(l2), kind="ridge")

    return _best(map(solved, RIDGE_L2), "l2", val, weights, loss)


def fit_prototypes(
    train: Features, val: Features, classes: list[str], weights: NDArray[np.float32] | None, loss: Loss
) -> Head:
    """Compare features with the mean of each class, by cosine similarity (SimpleShot, Wang et al. 2019, CL2N).

    Args:
        train: features and labels.
        val: gives the temperature.
        classes: names in index order.
        weights: of classes (k,); None for equal ones. They enter the centre; a prototype is that of its class alone.
        loss: of logits on `val`.
    """
    k = len(classes)
    center = _center(train, k, weights)
    prototypes = unit_class_means(train, k, train.width, lambda x: x - center)
    head = Head(prototypes, np.zeros(k, np.float32), classes, 0.0, kind="prototype", center=center)
    return _best([head], "", val, weights, loss)


def fit_neighbours(
    train: Features, val: Features, classes: list[str], weights: NDArray[np.float32] | None, loss: Loss
) -> Head:
    """Keep the training features, of which the nearest vote by cosine similarity; their number is chosen on `val`.

    Args:
        train: features and labels; up to `MAX_EXEMPLAR_BYTES`.
        val: decides how many neighbours vote.
        classes: names in index order.
        weights: of the votes for each class (k,); None for equal ones.
        loss: of logits on `val`, by which the number is chosen.
    """
    center = _center(train, len(classes), weights)
    exemplars = np.concatenate([normalised(x - center) for x, _ in train])
    labels = np.concatenate([labels for _, labels in train])
    bias = np.zeros(len(classes), np.float32) if weights is None else np.log(np.maximum(weights, 1e-6))
    head = Head(exemplars, bias, classes, 0.0, kind="knn", center=center, exemplar_classes=labels)
    sizes = [size for size in NEIGHBOURS if size <= len(labels)] or [len(labels)]
    return _best((replace(head, neighbours=size) for size in sizes), "neighbours", val, weights, loss)


def fits_into_memory(train: Features) -> bool:
    """Whether the training features are few enough to be kept as neighbours."""
    return 4 * len(train) * train.width <= MAX_EXEMPLAR_BYTES


def _best(heads: Iterable[Head], setting: str, val: Features, weights: NDArray[np.float32] | None, loss: Loss) -> Head:
    """Return the best of some heads on `val`, calibrated, with the path of what was tried."""
    path: list[dict[str, float]] = []
    best: Head | None = None
    counted = image_weights(weights, val.labels)
    for head in heads:
        logits = scores(head, val)
        scale = 1.0
        if head.exemplar_classes is None:
            scale = SHARPNESS / calibration.fit_temperature(SHARPNESS * logits, val.labels)
        found = loss(scale * logits)
        accuracy = float(np.mean(counted * (logits.argmax(axis=1) == val.labels)))
        if best is None or found < min(entry["val_log_loss"] for entry in path):
            best = replace(head, weight=head.weight * np.float32(scale), bias=head.bias * np.float32(scale))
        chosen = {setting: float(getattr(head, setting))} if setting else {}
        path.append({**chosen, "val_log_loss": found, "val_accuracy": accuracy})
    assert best is not None, "no head was given"
    return replace(best, path=path)


def _class_sums(
    train: Features, classes: int, weights: NDArray[np.float32] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted sum of features (k, d) and of images (k,) of each class, float64."""
    sums = torch.zeros(classes, train.width, dtype=torch.float64)
    for x, labels in train:
        sums.index_add_(0, torch.from_numpy(labels), torch.from_numpy(x).double())
    counts = torch.from_numpy(np.bincount(train.labels, minlength=classes)).double()
    own = torch.ones(classes, dtype=torch.float64) if weights is None else torch.from_numpy(weights).double()
    return sums * own[:, None], counts * own


def _center(train: Features, classes: int, weights: NDArray[np.float32] | None) -> NDArray[np.float32]:
    sums, counts = _class_sums(train, classes, weights)
    center: NDArray[np.float32] = (sums.sum(0) / counts.sum()).float().numpy()
    return center
