"""What a model predicts for an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rootstock.dataset import label_sets
from rootstock.images.reasons import Reason


@dataclass(frozen=True)
class Prediction:
    """The predicted class and the calibrated probability of each class, by name; or why an image was rejected.

    `name` is the given path, or the image's position. `unknown` says that the image is probably of none of the classes:
    its `novelty`, from 0 (like the training images of a class) to 2, is above that of 95 % of the validation images;
    `label` is the most probable class even so. For a rejected image, `label` and `probabilities` are empty, `reason` is
    one of ingest's (images/reasons.py), and `detail` explains it.

    Where an image may have any number of classes, `labels` are those whose probability reaches their threshold, and
    `label` is their text, `cat;dog`; else they are one and the same.
    """

    label: str
    probabilities: dict[str, float]
    name: str = ""
    reason: Reason | None = None
    detail: str = ""
    unknown: bool = False
    novelty: float | None = None
    labels: tuple[str, ...] = ()


def predicted(
    classes: Sequence[str],
    probabilities: NDArray[np.float32],
    novelty: float | None,
    name: str = "",
    thresholds: NDArray[np.float32] | None = None,
    known_up_to: float = float("inf"),
) -> Prediction:
    """Return the prediction of a model with these classes.

    Args:
        classes: names in index order (k of them).
        probabilities: calibrated (k,).
        novelty: how unlike the training images it is; None if that is not known.
        name: of the image.
        thresholds: of the classes (k,), where it may have any number of them.
        known_up_to: the novelty above which it is unknown.
    """
    of_classes = dict(zip(classes, map(float, probabilities), strict=True))
    if thresholds is None:
        labels = [max(of_classes, key=of_classes.__getitem__)]
    else:
        labels = [label for label, reached in zip(classes, probabilities >= thresholds, strict=True) if reached]
    unknown = novelty is not None and novelty > known_up_to
    return Prediction(label_sets.join(labels), of_classes, name, unknown=unknown, novelty=novelty, labels=tuple(labels))
