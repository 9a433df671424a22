"""Temperature scaling: calibrate probabilities with one temperature, fitted on validation images."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from rootstock.system.parallel import map_rows
from rootstock.system.sampling import evenly_spaced

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]
TEMPERATURES = (0.05, 20.0)  # beyond these, probabilities are one-hot or uniform
MOST_IMAGES, MOST_LOGITS = 50_000, 10_000_000  # that a temperature is fitted to: more say the same


def fit_temperature(logits: Floats, labels: Integers) -> float:
    """Fit the temperature T, 0.05 to 20, that minimises the log loss of softmax(logits / T) (Guo et al. 2017).

    Targets are smoothed as in Platt (1999): one in n + 2 is expected in another class. Without that, the loss of a
    model with every image right keeps falling as T does, and its later mistakes are made with certainty. The loss is
    convex in 1/T, so a bounded search over log T finds its one minimum deterministically. Of many images,
    evenly spaced ones are used.

    Args:
        logits: (n, k), n > 0, of held-out images.
        labels: class indices (n,).

    """
    if len(labels) == 0 or logits.shape[0] != len(labels):
        raise ValueError(f"expected logits (n, k) and labels (n,), got {logits.shape} and {labels.shape}")
    chosen = evenly_spaced(len(labels), min(MOST_IMAGES, MOST_LOGITS // logits.shape[1]))
    margins, labels = logits[chosen].astype(np.float64), labels[chosen]
    margins -= np.take_along_axis(margins, labels[:, None], axis=1)
    n, k = margins.shape
    smoothing = float(margins.sum()) / n / max(1, k - 1) / (n + 2)

    def loss(log_temperature: float) -> float:
        sharpness = np.exp(-log_temperature)
        sums = map_rows(lambda rows: float(special.logsumexp(margins[rows] * sharpness, axis=1).sum()), n, k)
        return float(sum(sums) / n - smoothing * sharpness)

    bounds = np.log(TEMPERATURES)
    result = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.clip(np.exp(result.x), *TEMPERATURES))


def at_bound(temperature: float) -> bool:
    """Check whether a fitted temperature is at a bound of the search."""
    return any(abs(temperature / bound - 1) < 1e-3 for bound in TEMPERATURES)


def softmax(
    logits: Floats, temperature: float = 1.0, out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Return the probabilities (n, k) float32 of logits (n, k) at a temperature.

    Args:
        logits: any floats.
        temperature: that they are divided by.
        out: receives the probabilities; may be the logits themselves.
    """
    found = np.empty(logits.shape, np.float32) if out is None else out

    def fill(rows: slice) -> None:
        found[rows] = special.softmax(logits[rows].astype(np.float64) / temperature, axis=-1)

    map_rows(fill, *logits.shape)
    return found


def most_probable(probabilities: npt.NDArray[np.float32], count: int) -> Integers:
    """Return the most probable classes (n, count) of (n, k), the first of equal ones; faster than a sort."""
    left, top = probabilities.copy(), np.empty((len(probabilities), count), np.int64)
    for place in range(count):
        top[:, place] = left.argmax(1)
        np.put_along_axis(left, top[:, place, None], -1, 1)
    return top
