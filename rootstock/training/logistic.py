"""Logistic regression on frozen features, along a path of L2 strengths.

It is multinomial, or, where images have any number of classes, one binary regression for each class.

Each strength is fitted by L-BFGS on the features' principal axes, where the curvature of the loss is known and nearly
diagonal. Dividing it out (a preconditioner; Nocedal and Wright, Numerical Optimization, chapter 5) leaves about ten
passes over the features where L-BFGS alone takes some hundred. docs/benchmarks.md compares it with scikit-learn.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from rootstock.features.reader import Features
from rootstock.system import progress
from rootstock.system.devices import device
from rootstock.system.parallel import limit_to_one_core
from rootstock.training.head import Head, evaluate
from rootstock.training.kept_passes import KeptPasses
from rootstock.training.log_loss import Evaluation, LogLoss, Solution
from rootstock.training.pass_progress import PassProgress
from rootstock.training.principal_axes import PrincipalAxes, find_principal_axes

SIGNIFICANT = 0.01  # relative difference in log loss that justifies a wider search
TOLERANCE = 1e-6  # relative decrease of the objective that ends a fit; float32 sums resolve a tenth of it
LEFT = 0.1  # of the loss's curvature at the start, by which variables are scaled; measured in docs/benchmarks.md


def fit_logistic_path(
    train: Features, val: Features, classes: list[str], l2: Sequence[float], max_iterations: int = 300,
    axes: PrincipalAxes | None = None, weights: NDArray[np.float32] | None = None,
    passes: KeptPasses | None = None, advance: progress.Advance | None = None,
) -> Head:  # fmt: skip
    """Fit logistic regression for each L2 strength and keep the best on `val`.

    minimises over W (k, d), b (k):   1/n Σ_i -w_i log softmax(W z_i + b)[y_i]  +  l2/(2n) ||W||²,   z = (x - μ) / σ

    or, where images have any number of classes, with Σ_c softplus(W z_i + b)[c] - y_i[c] (W z_i + b)[c] in the sum.

    Each evaluation takes one pass over the features, which are streamed unless they fit into memory (see `Features`).

    Args:
        train: features and labels.
        val: decides which strength is kept, by log loss.
        classes: names in index order, each with a training image.
        l2: strengths, 1/C in scikit-learn's terms; fitted from strong to weak, each starting from the last solutions.
        max_iterations: maximum L-BFGS iterations per strength.
        axes: define μ and σ; by default of the training images.
        weights: of classes (k,), averaging to 1 over the training images; None for equal ones.
        passes: keeps what passes over the features find; None keeps nothing.
        advance: of a report of passes (pass_progress.py); None reports nothing.
    """
    best: Head | None = None
    path: list[dict[str, float]] = []
    for candidate, iterations in fit_each(
        train, classes, sorted(set(l2), reverse=True), max_iterations, axes, weights, passes, advance
    ):
        loss, accuracy = evaluate(candidate, val, weights)
        if best is None or loss < min(entry["val_log_loss"] for entry in path):
            best = candidate
        convergence = {"iterations": float(iterations), "converged": iterations < max_iterations}
        path.append({"l2": candidate.l2, "val_log_loss": loss, "val_accuracy": accuracy, **convergence})
    assert best is not None, "no strength was given"
    return replace(best, path=path, warnings=warnings(path, best.l2, max_iterations))


def fit_each(
    train: Features,
    classes: list[str],
    l2: Sequence[float],
    max_iterations: int,
    axes: PrincipalAxes | None = None,
    weights: NDArray[np.float32] | None = None,
    passes: KeptPasses | None = None,
    advance: progress.Advance | None = None,
) -> Iterator[tuple[Head, int]]:
    """Yield the head of each strength, from strong to weak, and the number of its L-BFGS iterations.

    Args:
        train: features and labels.
        classes: names in index order.
        l2: strengths.
        max_iterations: maximum L-BFGS iterations per strength.
        axes: of images among which the training images are; by default of these. They define μ and σ.
        weights: of classes (k,), averaging to 1 over the training images; None for equal ones.
        passes: keeps what passes over the features find; then `axes` have to be the same after a restart.
        advance: of a report of passes; None reports nothing.
    """
    axes = axes or find_principal_axes(train, weights)
    counted = PassProgress(advance, len(l2), max_iterations, TOLERANCE)
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=limit_to_one_core) as pool:
        loss = LogLoss(train, axes, len(classes), device(), pool, weights, passes, counted)
        start: Evaluation | None = None
        earlier: list[tuple[float, Solution]] = []
        for strength in l2:
            until = f"{max_iterations} iterations or {TOLERANCE}"
            name = f"{len(classes)} classes, {until}, l2 {[*(l2 for l2, _ in earlier), strength]}"
            kept = passes.find(name) if passes else None
            if kept:
                start, iterations = _of_tensors(kept)
            else:
                start = start or loss(Solution.zeros(loss.shape))
                if len(earlier) > 1:
                    start = _better_start(loss, start, _extrapolated(earlier[-2], earlier[-1], strength), strength)
                start, iterations = _minimise(loss, start, strength, max_iterations, counted)
                if passes:
                    passes.finish(name, _as_tensors(start, iterations))
            counted.strength(is_kept=kept is not None)
            earlier.append((strength, start.at))
            head = _head(start.at, axes, classes, strength)
            yield replace(head, multi_label=train.labels.ndim == 2), iterations


def _as_tensors(at: Evaluation, iterations: int) -> dict[str, torch.Tensor]:
    point = {"at weight": at.at.weight, "at bias": at.at.bias, "iterations": torch.tensor(iterations)}
    return at.as_tensors() | point


def _of_tensors(kept: dict[str, torch.Tensor]) -> tuple[Evaluation, int]:
    at = Solution(kept["at weight"], kept["at bias"])
    return Evaluation.of_tensors(at, kept), int(kept["iterations"])


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


def _extrapolated(before: tuple[float, Solution], last: tuple[float, Solution], l2: float) -> Solution:
    """Extrapolate two solutions of a path linearly over the logarithm of the strength."""
    (first, old), (second, new) = before, last
    ratio = math.log(l2 / second) / math.log(second / first)
    return Solution(new.weight + ratio * (new.weight - old.weight), new.bias + ratio * (new.bias - old.bias))


def _better_start(loss: LogLoss, last: Evaluation, other: Solution, l2: float) -> Evaluation:
    """Evaluate another start, and return the one with the smaller objective."""
    return min(loss(other), last, key=lambda evaluation: evaluation.penalised(l2 / loss.images))


def _minimise(
    loss: LogLoss, start: Evaluation, l2: float, max_iterations: int, counted: PassProgress
) -> tuple[Evaluation, int]:
    """Minimise the objective by preconditioned L-BFGS; return the minimum and the number of iterations.

    The Hessian is close to curvature * variances + l2 / n on the diagonal and small beside it. Variables are scaled by
    its square root, and the objective by its first value, so that the tolerance is relative. The curvature falls as the
    head learns, most along axes of little variance.
    """
    decay, curvature = l2 / loss.images, LEFT * start.curvature
    by_weight = (curvature * loss.axes.variances + decay).sqrt()
    by_bias = math.sqrt(curvature)
    unit = start.penalised(decay)
    if unit == 0:  # there is only one class
        return start, 0
    split = start.at.weight.numel()
    latest = start
    tried = np.empty(0)

    def scaled(solution: Solution) -> NDArray[np.float64]:
        return torch.cat([(solution.weight * by_weight).ravel(), solution.bias * by_bias]).numpy()

    def objective(variables: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal latest, tried
        if not np.array_equal(variables, tried):
            tried = variables.copy()
            found = torch.from_numpy(tried)
            latest = loss(Solution(found[:split].view(loss.shape) / by_weight, found[split:] / by_bias))
            counted.reached(latest.penalised(decay) / unit)
        by_weights = (latest.gradient.weight + decay * latest.at.weight) / by_weight
        gradient = torch.cat([by_weights.ravel(), latest.gradient.bias / by_bias]) / unit
        return latest.penalised(decay) / unit, gradient.numpy()

    # L-BFGS's vectors are too short for BLAS threads (docs/benchmarks.md, "Choices that were measured").
    with threadpool_limits(1, user_api="blas"):
        tried = scaled(start.at)
        counted.reached(1.0)
        result = minimize(
            objective, tried, jac=True, method="L-BFGS-B",
            options={"maxiter": max_iterations, "maxcor": 10, "ftol": TOLERANCE, "gtol": TOLERANCE},
        )  # fmt: skip
        objective(result.x)  # the latest point may be another, which the line search tried
    return latest, int(result.nit)


def _head(solution: Solution, axes: PrincipalAxes, classes: list[str], l2: float) -> Head:
    """Convert a solution on the principal axes to a head that gives the same logits on features as they are."""
    weight = solution.weight @ axes.projection.T
    bias = solution.bias - weight @ axes.mean
    return Head(weight.float().numpy(), bias.float().numpy(), classes, l2)
