"""Simulated features, in memory and in files: of classes that overlap, and of classes that do not."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.features import feature_files


class Chunks:
    """In-memory features with the interface of `Features`."""

    fits_into_memory = True

    def __init__(self, x: NDArray[np.floating], labels: NDArray[np.int64], size: int = 64) -> None:
        self.x, self.labels, self.size, self.width = x, labels, size, x.shape[1]

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[tuple[NDArray[np.floating], NDArray[np.int64]]]:
        for start in range(0, len(self.x), self.size):
            yield self.x[start : start + self.size], self.labels[start : start + self.size]


def simulated(n: int, k: int = 3, d: int = 8, seed: int = 0, apart: float = 1.0) -> Chunks:
    """Classes that overlap, in features of different scales and means."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    centres = np.random.default_rng(99).normal(0, apart, (k, d))
    x = (centres[labels] + rng.normal(0, 1, (n, d))) * np.linspace(0.5, 2, d) + np.linspace(-5, 5, d)
    return Chunks(x.astype(np.float32), labels)


def dataset(
    tmp_path: Path, labels: np.ndarray, features: np.ndarray, groups: np.ndarray
) -> tuple[list[Path], pd.DataFrame]:
    """Write features, and return their folder and a manifest."""
    ids = np.array([f"{number:05d}" for number in range(len(labels))])
    folder = tmp_path / "key"
    batches = [(ids.tolist(), features.astype(np.float32))]
    feature_files.write(folder / "shard.parquet", batches, features.shape[1], "float32", {})
    manifest = pd.DataFrame(
        {
            "image_id": ids,
            "class_index": labels,
            "shard": "shard",
            "offset": np.arange(len(labels)),
            "group_id": groups.astype(str),
            "split": "train",
            "source": "photos",
            "path": [f"{name}.jpg" for name in ids],
            "domain": "field",
            "label": [f"class {label}" for label in labels],
        }
    )
    return [folder], manifest


def separable(labels: np.ndarray, classes: int, seed: int = 0) -> np.ndarray:
    return 6 * np.eye(classes)[labels] + np.random.default_rng(seed).normal(size=(len(labels), classes))
