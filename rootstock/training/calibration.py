"""Probabilities that mean what they say: one temperature for all logits, found on validation images."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]
TEMPERATURES = (0.05, 20.0)  # outside, one class or all of them would get the whole probability


def fit_temperature(logits: Floats, labels: Integers) -> float:
    """Find the temperature T, 0.05 to 20, whose softmax(logits / T) has the least log loss (Guo et al. 2017).

    The targets are not quite 0 and 1: as in Platt (1999), the n images and a uniform prior say that one in n + 2 goes
    to another class. Where a model has every image right, the plain loss would only fall with T, and its few mistakes
    to come would be made with certainty. The loss is convex in 1/T, so a bounded search over log T finds the one
    minimum, the same each time.

    Args:
        logits: (n, k), n > 0, of images that the model was not fitted to.
        labels: class indices (n,).

    """
    if len(labels) == 0 or logits.shape[0] != len(labels):
        raise ValueError(f"expected logits (n, k) and labels (n,), got {logits.shape} and {labels.shape}")
    margins = logits.astype(np.float64)
    margins -= np.take_along_axis(margins, labels[:, None], axis=1)
    elsewhere = margins.sum(axis=1).mean() / max(1, margins.shape[1] - 1) / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        sharpness = np.exp(-log_temperature)
        return float(special.logsumexp(margins * sharpness, axis=1).mean() - elsewhere * sharpness)

    ends = np.log(TEMPERATURES)
    found = optimize.minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6})
    return float(np.clip(np.exp(found.x), *TEMPERATURES))


def at_an_end(temperature: float) -> bool:
    """Whether a temperature is as low or as high as it is allowed to be: the search would have gone further."""
    return any(abs(temperature / end - 1) < 1e-3 for end in TEMPERATURES)


def softmax(logits: Floats, temperature: float = 1.0) -> npt.NDArray[np.float32]:
    """Turn logits (n, k), divided by the temperature, into probabilities (n, k) float32."""
    return np.asarray(special.softmax(logits.astype(np.float64) / temperature, axis=-1), dtype=np.float32)
