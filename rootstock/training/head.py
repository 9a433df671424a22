"""The linear head: multinomial logistic regression on frozen features, along a path of L2 strengths."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy.optimize import minimize
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from rootstock.backbones.depths import Pooling
from rootstock.config.architectures import PENULTIMATE
from rootstock.features.reader import Features
from rootstock.system import progress
from rootstock.system.errors import SourceError
from rootstock.system.files import read_json, reading, replacing_folder, sha256, verify, write

log = logging.getLogger(__name__)
Array = NDArray[np.float64]
DEVIATION_FLOOR = 0.3  # share of the features' root mean square deviation; measured in docs/benchmarks.md
SIGNIFICANT = 0.01  # relative difference in log loss that justifies a wider search
WEIGHTS, DESCRIPTION = "head.safetensors", "head.json"
DESCRIBED = ("classes", "l2", "path", "layer", "pooling", "warnings")


@dataclass(frozen=True)
class Head:
    """A linear classifier on unstandardised features; standardisation is folded into its weights.

    weight (k, d) float32, bias (k,) float32; `path` has one entry per L2 strength tried; `layer` and `pooling` say
    where the backbone is cut; `warnings` report a search that ended at a limit.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    classes: list[str]
    l2: float
    path: list[dict[str, float]] = field(default_factory=list)
    layer: str = PENULTIMATE
    pooling: Pooling = "avg"
    warnings: list[str] = field(default_factory=list)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits (n, k) float32 of features (n, d)."""
        scores: NDArray[np.float32] = features @ self.weight.T + self.bias
        return scores


def fit_logistic_path(
    train: Features, val: Features, classes: list[str], l2: Sequence[float], max_iterations: int = 300
) -> Head:
    """Fit multinomial logistic regression for each L2 strength and keep the best on `val`.

    minimises over W (k, d), b (k):   1/n Σ_i -log softmax(W z_i + b)[y_i]  +  l2/(2n) ||W||²,   z = (x - μ) / σ

    with L-BFGS. Each evaluation takes one pass over the features, which are streamed unless they fit into memory (see
    `Features`).

    Args:
        train: features and labels; define μ and σ.
        val: decides which strength is kept, by log loss.
        classes: names in index order.
        l2: strengths, 1/C in scikit-learn's terms; fitted from strong to weak, each starting from the last solution.
        max_iterations: maximum L-BFGS iterations per strength.

    Raises:
        SourceError: a class does not occur in `train`.
    """
    fitted = fit_path(
        train,
        val,
        classes,
        progress.track(sorted(l2, reverse=True), "train_head", len(l2), "strengths"),
        max_iterations,
    )
    found = warnings(fitted.path, fitted.l2, max_iterations)
    for warning in found:
        log.warning("%s", warning)
    return replace(fitted, warnings=found)


def fit_path(train: Features, val: Features, classes: list[str], l2: Iterable[float], max_iterations: int) -> Head:
    """Fit a head as `fit_logistic_path` does, without a word on the search; `l2` runs from strong to weak."""
    if unseen := sorted(set(range(len(classes))) - set(train.labels.tolist())):
        raise SourceError(
            f"no image of {', '.join(repr(classes[index]) for index in unseen)} is in the train split; expected images "
            "of every class. Add images or remove the class, then run ingest again."
        )
    mean, inverse_deviation = _standardisation(train)
    k, d = len(classes), train.width
    solution = np.zeros(k * (d + 1))
    best: Head | None = None
    path = []
    for strength in l2:
        # L-BFGS's vectors are too short for BLAS threads (docs/benchmarks.md, "Choices that were measured").
        with threadpool_limits(1, user_api="blas"):
            result = minimize(
                _objective, solution, (train, mean, inverse_deviation, strength), jac=True, method="L-BFGS-B",
                options={"maxiter": max_iterations, "maxcor": 10, "ftol": 1e-9, "gtol": 1e-6},
            )  # fmt: skip
        solution = result.x
        weight, bias = _fold(solution, mean, inverse_deviation)
        candidate = Head(weight.astype(np.float32), bias.astype(np.float32), classes, strength)
        loss, accuracy = evaluate(candidate, val)
        convergence = {"iterations": float(result.nit), "converged": bool(result.nit < max_iterations)}
        path.append({"l2": strength, "val_log_loss": loss, "val_accuracy": accuracy, **convergence})
        if best is None or loss < min(entry["val_log_loss"] for entry in path[:-1]):
            best = candidate
    assert best is not None, "no strength was given"
    return replace(best, path=path)


def warnings(path: Sequence[Mapping[str, float]], l2: float, max_iterations: int) -> list[str]:
    """Warn where the search ended at a limit: L-BFGS iterations, or an end of the L2 strengths.

    Args:
        path: one entry per strength, as in head.json.
        l2: the chosen strength.
        max_iterations: maximum L-BFGS iterations per strength.
    """
    found = []
    unconverged = [entry["l2"] for entry in path if not entry["converged"]]
    if l2 in unconverged:
        which = "no L2 strength has" if len(unconverged) == len(path) else f"the chosen L2 strength, {l2:g}, has not"
        found.append(
            f"The head may improve: {which} converged within head.max_iterations ({max_iterations}); increase it."
        )
    losses = {entry["l2"]: entry["val_log_loss"] for entry in path}
    for step, word in ((-1, "larger"), (1, "smaller")):
        ordered = sorted(losses)[::step]
        if len(ordered) > 1 and l2 == ordered[0] and losses[l2] < (1 - SIGNIFICANT) * losses[ordered[1]]:
            found.append(f"The best L2 strength, {l2:g}, is at an end of head.l2; try a {word} one.")
    return found


def _standardisation(features: Features) -> tuple[Array, Array]:
    """Compute mean and inverse standard deviation of each feature; 0 for a constant one, which is not informative.

    A feature is constant if it varies by less than float32 resolves around its mean. Absolute size does not matter:
    random weights give informative features of 1e-9.

    Deviations are floored at DEVIATION_FLOOR times their root mean square. Some features of a pretrained network
    hardly vary on a new domain (down to 4e-5); dividing by that amplifies noise, and the first step of fine-tuning
    would ruin the head.
    """
    n = len(features)
    mean = sum(x.sum(0, dtype=np.float64) for x, _ in features) / n
    variance = sum(((x - mean) ** 2).sum(0, dtype=np.float64) for x, _ in features) / n
    deviation = np.sqrt(variance)
    useful = deviation > 1e-6 * np.abs(mean)
    floored = np.maximum(deviation, DEVIATION_FLOOR * np.sqrt(variance.mean()))
    return mean, np.where(useful, 1 / np.where(useful, floored, 1), 0)


def _fold(solution: Array, mean: Array, inverse_deviation: Array) -> tuple[Array, Array]:
    """Convert W, b on standardised features to those that give the same logits on unstandardised ones."""
    standardised = solution.reshape(-1, len(mean) + 1)
    weight = standardised[:, :-1] * inverse_deviation
    return weight, standardised[:, -1] - weight @ mean


def _objective(
    solution: Array, train: Features, mean: Array, inverse_deviation: Array, l2: float
) -> tuple[float, Array]:
    """Evaluate the objective and its gradient in one pass; products in float32, sums in float64."""
    n = len(train)
    weight, bias = _fold(solution, mean, inverse_deviation)
    narrow = weight.T.astype(np.float32)
    loss, by_weight, by_bias = 0.0, np.zeros(weight.shape), np.zeros(len(bias))
    for x, labels in train:
        log_probabilities = log_softmax(_product(x, narrow).astype(np.float64) + bias, axis=1)
        rows = np.arange(len(labels))
        loss -= log_probabilities[rows, labels].sum()
        residual = np.exp(log_probabilities)
        residual[rows, labels] -= 1
        by_weight += _product(residual.T.astype(np.float32), x)
        by_bias += residual.sum(0)
    # d loss / d W of the standardised problem: Σ r_i (x_i - μ)ᵀ / σ
    standardised = solution.reshape(-1, len(mean) + 1)
    gradient = np.empty_like(standardised)
    gradient[:, :-1] = (by_weight - np.outer(by_bias, mean)) * inverse_deviation / n + l2 / n * standardised[:, :-1]
    gradient[:, -1] = by_bias / n
    return loss / n + l2 / (2 * n) * float((standardised[:, :-1] ** 2).sum()), gradient.ravel()


def _product(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply two matrices on torch's threads, which the BLAS limit does not affect."""
    product: NDArray[np.float32] = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    return product


def evaluate(head: Head, features: Features) -> tuple[float, float]:
    """Compute mean log loss (nats) and accuracy of a head."""
    loss, correct = 0.0, 0
    for x, labels in features:
        logits = head.logits(x).astype(np.float64)
        loss -= float(log_softmax(logits, axis=1)[np.arange(len(labels)), labels].sum())
        correct += int((logits.argmax(1) == labels).sum())
    return loss / len(features), correct / len(features)


def save(head: Head, folder: Path, facts: dict[str, Any]) -> None:
    """Save a head: `head.safetensors` (weight, bias) and `head.json` (classes, strength, path, and `facts`)."""
    with replacing_folder(folder) as temporary:
        save_file({"weight": head.weight, "bias": head.bias}, temporary / WEIGHTS)
        digest = {"digest": sha256(temporary / WEIGHTS)}
        described = {name: getattr(head, name) for name in DESCRIBED} | digest | facts
        write(temporary / DESCRIPTION, json.dumps(described, indent=2, ensure_ascii=False) + "\n")


def load(folder: Path) -> Head:
    """Load a head.

    Raises:
        DamagedError: a file is damaged or does not match its digest.
    """
    described = read_json(folder / DESCRIPTION)
    with reading(folder / DESCRIPTION):
        named = {name: described[name] for name in DESCRIBED}
        digest, classes = described["digest"], len(described["classes"])
        [entry["l2"] for entry in described["path"]]  # raises if the path is damaged
    verify(folder / WEIGHTS, digest)
    with reading(folder / WEIGHTS):
        tensors = load_file(folder / WEIGHTS)
        if len(tensors["weight"]) != classes or tensors["bias"].shape != (classes,):
            raise ValueError(f"its shape does not fit {classes} classes")
        return Head(tensors["weight"], tensors["bias"], **named)
