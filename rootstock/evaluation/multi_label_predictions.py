"""What a model predicts for images that may have any number of classes. All probabilities are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rootstock.dataset import label_sets
from rootstock.dataset.tables import Labels

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Places = slice | Integers  # of images
EVERY = slice(None)
NO_CLASS = "(none)"  # in a confusion matrix, beside the classes: missed without a wrong one, or wrong without a missed


@dataclass(frozen=True)
class MultiLabelPredictions:
    """What a model predicts for n images, by its calibrated probabilities and its thresholds.

    Args:
        predicted: which classes each image is said to have (n, k).
        probabilities: of these (n, k) float32.
        confidence: of the surest wrong decision on an image (n,) float32; where all are right, of the least sure one.
        label_probability: of an image's labels (n,) float32: the geometric mean over the classes.
    """

    predicted: Booleans
    probabilities: Floats
    confidence: Floats
    label_probability: Floats

    @classmethod
    def of(cls, probabilities: Floats, labels: Labels, thresholds: Floats) -> "MultiLabelPredictions":
        """Decide by probabilities (n, k) and thresholds (k,), knowing the labels (n, k)."""
        predicted = probabilities >= thresholds
        sureness = np.where(predicted, probabilities, 1 - probabilities)
        surest_wrong = np.where(predicted != labels, sureness, -1).max(axis=1)
        confidence = np.where(surest_wrong >= 0, surest_wrong, sureness.min(axis=1))
        of_labels = np.where(labels, probabilities, 1 - probabilities)
        mean = np.exp(np.log(np.maximum(of_labels, np.finfo(np.float32).tiny)).mean(axis=1))
        return cls(predicted, probabilities, confidence.astype(np.float32), mean.astype(np.float32))

    def texts(self, classes: Sequence[str] | NDArray[np.object_], images: Places = EVERY) -> NDArray[np.object_]:
        """Return what is predicted for images (m,), by the names of classes: `cat;dog`."""
        names = np.asarray(classes, dtype=object)
        return np.array([label_sets.join(names[row]) for row in self.predicted[images]], dtype=object)

    def is_right(self, labels: Labels) -> Booleans:
        """Return of which images all labels are right (n,)."""
        right: Booleans = (self.predicted == labels).all(axis=1)
        return right

    def confused(self, labels: Labels) -> tuple[Integers, Integers]:
        """Return actual and predicted classes of a confusion matrix; see `confused_sets`."""
        return confused_sets(labels, self.predicted)

    def decisions(self, labels: Labels) -> tuple[Floats, Booleans]:
        """Return the probability of each class of each image, and whether the image has it (n k,)."""
        return self.probabilities.ravel(), labels.ravel()

    def explained(self, labels: Labels, image: int) -> list[int]:
        """Return the class for which the evidence in an image is shown: that of the surest wrong decision.

        Where all are right, it is the most probable class; none where the image has none.
        """
        predicted, chances = self.predicted[image], self.probabilities[image]
        wrong = predicted != labels[image]
        sureness = np.where(predicted, chances, 1 - chances)
        if wrong.any():
            return [int(np.where(wrong, sureness, -1).argmax())]
        return [int(chances.argmax())] if predicted.any() else []


def confused_sets(labels: Booleans, predicted: Booleans) -> tuple[Integers, Integers]:
    """Return actual and predicted classes (m,) of a confusion matrix with one class more, k, for none.

    Every label that is right is a pair with itself; every missed one a pair with each wrong one of its image, or with
    none (Heydarian, Doyle and Samavi 2022, MLCM: Multi-Label Confusion Matrix, IEEE Access 10).

    Args:
        labels: which classes each image has (n, k).
        predicted: which it is said to have (n, k).
    """
    none = labels.shape[1]
    hits = np.nonzero(labels & predicted)[1]
    pairs = [np.stack([hits, hits], axis=1)]
    for image in np.flatnonzero((labels != predicted).any(axis=1)):
        missed, wrong = (
            np.flatnonzero(own) for own in (labels[image] & ~predicted[image], predicted[image] & ~labels[image])
        )
        both = np.meshgrid(missed if len(missed) else [none], wrong if len(wrong) else [none], indexing="ij")
        pairs.append(np.stack([part.ravel() for part in both], axis=1))
    found = np.concatenate(pairs).astype(np.int64)
    return found[:, 0], found[:, 1]
