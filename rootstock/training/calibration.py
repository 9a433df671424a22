"""Temperature scaling: calibrate probabilities with one temperature, fitted on validation images."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]
TEMPERATURES = (0.05, 20.0)  # beyond these, probabilities are one-hot or uniform


def fit_temperature(logits: Floats, labels: Integers) -> float:
    """Fit the temperature T, 0.05 to 20, that minimises the log loss of softmax(logits / T) (Guo et al. 2017).

    Targets are smoothed as in Platt (1999): one in n + 2 is expected in another class. Without that, the loss of a
    model with every image right keeps falling as T does, and its later mistakes are made with certainty. The loss is
    convex in 1/T, so a bounded search over log T finds its one minimum deterministically.

    Args:
        logits: (n, k), n > 0, of held-out images.
        labels: class indices (n,).

    """
    if len(labels) == 0 or logits.shape[0] != len(labels):
        raise ValueError(f"expected logits (n, k) and labels (n,), got {logits.shape} and {labels.shape}")
    margins = logits.astype(np.float64)
    margins -= np.take_along_axis(margins, labels[:, None], axis=1)
    smoothing = margins.sum(axis=1).mean() / max(1, margins.shape[1] - 1) / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        sharpness = np.exp(-log_temperature)
        return float(special.logsumexp(margins * sharpness, axis=1).mean() - smoothing * sharpness)

    bounds = np.log(TEMPERATURES)
    result = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.clip(np.exp(result.x), *TEMPERATURES))


def at_bound(temperature: float) -> bool:
    """Check whether a fitted temperature is at a bound of the search."""
    return any(abs(temperature / bound - 1) < 1e-3 for bound in TEMPERATURES)


def softmax(logits: Floats, temperature: float = 1.0) -> npt.NDArray[np.float32]:
    """Return the probabilities (n, k) float32 of logits (n, k) at a temperature."""
    return np.asarray(special.softmax(logits.astype(np.float64) / temperature, axis=-1), dtype=np.float32)
