"""Features in memory, of simulated classes that overlap."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


class Chunks:
    """In-memory features with the interface of `Features`."""

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
