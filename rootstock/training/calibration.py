"""Temperature scaling: calibrate probabilities with one temperature, fitted on validation images.

Of images with any number of classes, the probability of each class is a sigmoid.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from rootstock.dataset.tables import Labels
from rootstock.system.parallel import map_rows
from rootstock.system.sampling import evenly_spaced

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]
TEMPERATURES = (0.05, 20.0)  # beyond these, probabilities are one-hot or uniform
MOST_IMAGES, MOST_LOGITS = 50_000, 10_000_000  # that a temperature is fitted to: more say the same


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """Fit the temperature T, 0.05 to 20, that minimises the log loss of softmax(logits / T) (Guo et al. 2017).

    With labels (n, k) of any number of classes, it is that of sigmoid(logits / T).

    Targets are smoothed as in Platt (1999): one in n + 2 is expected in another class. Without that, the loss of a
    model with every image right keeps falling as T does, and its later mistakes are made with certainty. The loss is
    convex in 1/T, so a bounded search over log T finds its one minimum deterministically. Of many images,
    evenly spaced ones are used.

    Args:
        logits: (n, k), n > 0, of held-out images.
        labels: class indices (n,), or which classes each image has (n, k).

    """
    if len(labels) == 0 or logits.shape[0] != len(labels):
        raise ValueError(f"expected logits (n, k) and labels (n,), got {logits.shape} and {labels.shape}")
    chosen = evenly_spaced(len(labels), min(MOST_IMAGES, MOST_LOGITS // logits.shape[1]))
    margins, labels = logits[chosen].astype(np.float64), labels[chosen]
    n, k = margins.shape
    if labels.ndim == 1:
        margins -= np.take_along_axis(margins, labels[:, None], axis=1)
        others = max(1, k - 1)
    else:
        margins *= 1 - 2 * labels  # the logit of the other answer
        others = 1
    smoothing = float(margins.sum()) / n / others / (n + 2)

    def loss_of(some: npt.NDArray[np.float64]) -> float:
        own = special.logsumexp(some, axis=1) if labels.ndim == 1 else np.logaddexp(0, some)
        return float(own.sum())

    def loss(log_temperature: float) -> float:
        sharpness = np.exp(-log_temperature)
        sums = map_rows(lambda rows: loss_of(margins[rows] * sharpness), n, k)
        return float(sum(sums) / n - smoothing * sharpness)

    bounds = np.log(TEMPERATURES)
    result = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.clip(np.exp(result.x), *TEMPERATURES))


def at_bound(temperature: float) -> bool:
    """Check whether a fitted temperature is at a bound of the search."""
    return any(abs(temperature / bound - 1) < 1e-3 for bound in TEMPERATURES)


def probabilities(
    logits: Floats, temperature: float = 1.0, out: npt.NDArray[np.float32] | None = None, *, multi_label: bool = False
) -> npt.NDArray[np.float32]:
    """Return the probabilities (n, k) float32 of logits (n, k) at a temperature.

    Args:
        logits: any floats.
        temperature: that they are divided by.
        out: receives the probabilities; may be the logits themselves.
        multi_label: whether each class has a probability of its own, a sigmoid; else they sum to one.
    """
    found = np.empty(logits.shape, np.float32) if out is None else out

    def fill(rows: slice) -> None:
        scaled = logits[rows].astype(np.float64) / temperature
        found[rows] = special.expit(scaled) if multi_label else special.softmax(scaled, axis=-1)

    map_rows(fill, *logits.shape)
    return found


def most_probable(probabilities: npt.NDArray[np.float32], count: int) -> Integers:
    """Return the most probable classes (n, count) of (n, k), the first of equal ones; faster than a sort."""
    left, top = probabilities.copy(), np.empty((len(probabilities), count), np.int64)
    for place in range(count):
        top[:, place] = left.argmax(1)
        np.put_along_axis(left, top[:, place, None], -1, 1)
    return top
