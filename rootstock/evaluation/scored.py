"""What models predict for the images of a split. Of many classes all probabilities are gigabytes: a few are kept."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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

    @property
    def confidence(self) -> Floats:
        """Return the probability of the most probable class (n,)."""
        return self.top_probability[:, 0]


@dataclass(frozen=True)
class Scored:
    """The images of a split (manifest rows) with what each model predicts."""

    rows: pd.DataFrame
    predictions: dict[str, Predictions]

    @classmethod
    def of(cls, rows: pd.DataFrame, probabilities: Mapping[str, Floats], *, keep_all: bool = True) -> "Scored":
        """Return what models predict by their calibrated probabilities (n, k); see `Predictions.of`."""
        labels = rows["class_index"].to_numpy(np.int64)
        found = {name: Predictions.of(own, labels, keep_all=keep_all) for name, own in probabilities.items()}
        return cls(rows, found)

    @property
    def labels(self) -> Integers:
        """Return the class indices (n,)."""
        return self.rows["class_index"].to_numpy(np.int64)

    def mistakes(self, model: str) -> Integers:
        """Return the places of the images that a model misclassifies (m,), the most confident mistake first."""
        own = self.predictions[model]
        wrong = np.flatnonzero(own.predicted != self.labels)
        return wrong[np.argsort(-own.confidence[wrong], kind="stable")]
