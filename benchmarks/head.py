"""The head's fit against scikit-learn's: logistic regression over the same L2 strengths, at the same loss.

python -m benchmarks.head [--images 20000] [--width 1280] [--classes 10 100]

scikit-learn gets the same standardised features, float32, and for each strength the loosest tolerance with which its
loss is within 1e-4 of ours, cold (each strength alone) and warm (from the solution before). Only those fits count, not
the search for the tolerance. Prints seconds, and how far losses and predictions differ.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from rootstock.config.params import Head
from rootstock.training import logistic
from rootstock.training.principal_axes import find_principal_axes, invert_deviations

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
STRENGTHS = sorted(Head().l2, reverse=True)
EQUAL = 1e-4
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7)
ROW_GROUP = 3276


class Drawn:
    """Features in memory, with the interface of `Features`."""

    def __init__(self, x: NDArray[np.float32], labels: Integers) -> None:
        self.x, self.labels, self.width = x, labels, x.shape[1]

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], Integers]]:
        for start in range(0, len(self.x), ROW_GROUP):
            yield self.x[start : start + ROW_GROUP], self.labels[start : start + ROW_GROUP]


def draw(images: int, width: int, classes: int, seed: int) -> Drawn:
    """Draw features like a network's: correlated, with a few strong directions, non-negative, classes that overlap."""
    shared, rng = np.random.default_rng(classes), np.random.default_rng(seed)
    axes = np.linalg.qr(shared.standard_normal((width, width), np.float32))[0]
    deviations = np.arange(1, width + 1, dtype=np.float32) ** -0.5
    centres = 0.35 * shared.standard_normal((classes, width), np.float32) * deviations
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, images - classes)])
    x = (centres[labels] + rng.standard_normal((images, width), np.float32) * deviations) @ axes
    mistaken = rng.random(images) < 0.02
    labels[mistaken] = rng.integers(0, classes, mistaken.sum())
    return Drawn(np.maximum(x, 0), labels)


@dataclass(frozen=True)
class Path:
    """Seconds of a path, and for each strength the loss and the predicted classes (n,)."""

    seconds: float
    losses: list[float]
    predictions: list[Integers]


def scored(weight: Floats, bias: Floats, x: NDArray[np.float32], labels: Integers, l2: float) -> tuple[float, Integers]:
    """Return the penalised loss, computed in float64, and the predicted classes."""
    logits = x @ weight.T.astype(np.float64) + bias
    chosen = log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return float(-chosen.mean() + l2 / (2 * len(labels)) * (weight**2).sum()), logits.argmax(1)


def fit_ours(train: Drawn, classes: int, mean: Floats, deviations: Floats, x: NDArray[np.float32]) -> Path:
    """Fit the path as train_head does, from features as they are stored."""
    start = time.perf_counter()
    heads = [head for head, _ in logistic.fit_each(train, list(map(str, range(classes))), STRENGTHS, 300)]  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    found = [
        scored(head.weight * deviations, head.bias + head.weight @ mean, x, train.labels, head.l2) for head in heads
    ]
    return Path(seconds, [loss for loss, _ in found], [predicted for _, predicted in found])


def fit_scikit_learn(x: NDArray[np.float32], labels: Integers, losses: list[float], warm: bool) -> Path:
    """Fit each strength with the loosest tolerance that reaches a loss, or the tightest of TOLERANCES."""
    seconds, found, predictions, before = 0.0, [], [], None
    for l2, wanted in zip(STRENGTHS, losses, strict=True):
        for tolerance in TOLERANCES:
            model = LogisticRegression(C=1 / l2, max_iter=10_000, tol=tolerance, warm_start=warm)
            if warm and before is not None:
                model.coef_, model.intercept_, model.classes_ = before
            start = time.perf_counter()
            model.fit(x, labels)
            spent = time.perf_counter() - start
            loss, predicted = scored(model.coef_.astype(float), model.intercept_, x, labels, l2)
            if loss <= (1 + EQUAL) * wanted:
                break
        before = model.coef_, model.intercept_, model.classes_
        seconds += spent
        found.append(loss)
        predictions.append(predicted)
    return Path(seconds, found, predictions)


def compare(images: int, width: int, classes: int) -> None:
    """Print one table."""
    train = draw(images, width, classes, 0)
    axes = find_principal_axes(train)  # type: ignore[arg-type]
    mean = axes.mean.numpy()
    deviations = 1 / invert_deviations(axes.mean, torch.from_numpy(train.x).double().var(0, correction=0)).numpy()
    x = ((train.x - mean) / deviations).astype(np.float32)
    ours = fit_ours(train, classes, mean, deviations, x)
    print(f"{images:,} x {width:,}, {classes} classes, {len(STRENGTHS)} strengths on {torch.get_num_threads()} threads")
    print(f"  {'':22}{'seconds':>10}{'times ours':>12}{'loss, at most':>15}{'same predictions':>18}")
    print(f"  {'rootstock':22}{ours.seconds:>10.2f}")
    for warm in (False, True):
        other = fit_scikit_learn(x, train.labels, ours.losses, warm)
        difference = max(abs(a / b - 1) for a, b in zip(ours.losses, other.losses, strict=True))
        same = min((a == b).mean() for a, b in zip(ours.predictions, other.predictions, strict=True))
        name = f"scikit-learn, {'warm' if warm else 'cold'}"
        print(f"  {name:22}{other.seconds:>10.2f}{other.seconds / ours.seconds:>12.1f}{difference:>15.1e}{same:>18.2%}")


def main() -> None:
    """Compare for each number of classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    for classes in arguments.classes:
        compare(arguments.images, arguments.width, classes)


if __name__ == "__main__":
    main()
