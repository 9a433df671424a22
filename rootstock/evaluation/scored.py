"""What models predict for the images of a split. Of many classes all probabilities are gigabytes: a few are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.dataset import tables
from rootstock.dataset.tables import Labels
from rootstock.evaluation.multi_label_predictions import EVERY, MultiLabelPredictions, Places
from rootstock.system.parallel import map_rows
from rootstock.training.calibration import most_probable

TOP = 5
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for n images, by its calibrated probabilities.

    Args:
        top: the TOP most probable classes of each image, or all of fewer, the most probable first (n, t).
        top_probability: of these (n, t) float32.
        label_probability: of the images' labels (n,) float32.
        probabilities: of all classes (n, k) float32; None where they are not kept.
    """

    top: Integers
    top_probability: Floats
    label_probability: Floats
    probabilities: Floats | None = None

    @classmethod
    def of(cls, probabilities: Floats, labels: Integers, *, keep_all: bool = True) -> "Predictions":
        """Find the most probable classes of probabilities (n, k), and keep all of them if asked to."""

        def find(rows: slice) -> tuple[Integers, Floats, Floats]:
            own = probabilities[rows]
            top = most_probable(own, min(TOP, own.shape[1]))
            return top, np.take_along_axis(own, top, 1), np.take_along_axis(own, labels[rows, None], 1)[:, 0]

        chunks = map_rows(find, *probabilities.shape)
        top, of_top, of_label = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
        return cls(top, of_top, of_label, probabilities if keep_all else None)

    @property
    def predicted(self) -> Integers:
        """Return the most probable class of each image (n,)."""
        return self.top[:, 0]

    def texts(self, classes: Sequence[str] | NDArray[np.object_], images: Places = EVERY) -> NDArray[np.object_]:
        """Return what is predicted for images (m,), by the names of classes."""
        return np.asarray(classes, dtype=object)[self.predicted[images]]

    def is_right(self, labels: Labels) -> NDArray[np.bool_]:
        """Return which images are classified correctly (n,)."""
        right: NDArray[np.bool_] = self.predicted == labels
        return right

    def confused(self, labels: Labels) -> tuple[Integers, Integers]:
        """Return actual and predicted classes of a confusion matrix: here, of each image (n,)."""
        return labels, self.predicted

    def decisions(self, labels: Labels) -> tuple[Floats, NDArray[np.bool_]]:
        """Return the probability of what was decided, and whether it came true: here, of each image's class (n,)."""
        return self.confidence, self.is_right(labels)

    def explained(self, labels: Labels, image: int) -> list[int]:
        """Return the classes for which the evidence in an image is shown: the predicted and the actual one."""
        return list(dict.fromkeys([int(self.predicted[image]), int(labels[image])]))

    @property
    def confidence(self) -> Floats:
        """Return the probability of the most probable class (n,)."""
        return self.top_probability[:, 0]


AnyPredictions = Predictions | MultiLabelPredictions


@dataclass(frozen=True)
class Scored:
    """The images of a split (manifest rows) with what each model predicts."""

    rows: pd.DataFrame
    predictions: dict[str, AnyPredictions]
    labels: Labels

    @classmethod
    def of(
        cls, rows: pd.DataFrame, probabilities: Mapping[str, Floats], *, keep_all: bool = True,
        classes: Sequence[str] = (), thresholds: Mapping[str, Floats] = MappingProxyType({}),
    ) -> "Scored":  # fmt: skip
        """Return what models predict by their calibrated probabilities (n, k).

        Args:
            rows: of the manifest (n,).
            probabilities: of each model.
            keep_all: whether the probabilities of all classes are kept; where images have any number of classes, they
                are.
            classes: names in index order, needed where images have any number of them.
            thresholds: of the classes (k,) for each model, where images have any number of them.
        """
        labels, found = tables.labels_of_rows(rows, classes), dict[str, AnyPredictions]()
        for name, own in probabilities.items():
            if name in thresholds:
                found[name] = MultiLabelPredictions.of(own, labels, thresholds[name])
            else:
                found[name] = Predictions.of(own, labels, keep_all=keep_all)
        return cls(rows, found, labels)

    def mistakes(self, model: str) -> Integers:
        """Return the places of the images that a model misclassifies (m,), the most confident mistake first."""
        own = self.predictions[model]
        wrong = np.flatnonzero(~own.is_right(self.labels))
        return wrong[np.argsort(-own.confidence[wrong], kind="stable")]
