"""Coverage of the 95 % intervals of images with several labels by simulation.

    python -m benchmarks.multi_label_coverage    # the table of docs/retraining.md, in about five minutes

tests/rootstock/evaluation/test_error_rates.py holds the intervals to it.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.coverage import Coverage, in_percent
from rootstock.evaluation.multi_label_metrics import score

TRIALS = 500  # of each accuracy
ACCURACIES = (0.9, 0.95, 0.97, 0.98, 0.99)  # of a decision: whether an image has a label
FIGURES = ("accuracy", "exact_match", "macro_f1", "micro_f1", "log_loss", "brier")


@dataclass(frozen=True)
class Case:
    """Test images that come in scenes, whose images have the same labels.

    Args:
        scenes: how many.
        images: per scene.
        labels: how many there are.
        most: share of images that have the most frequent label.
        least: share that have the rarest; frequencies fall geometrically.
        alike: correlation of the classifier's margins within a scene.
    """

    scenes: int
    images: int
    labels: int
    most: float
    least: float
    alike: float = 0.7

    def __str__(self) -> str:
        """Describe the case."""
        among = f"{self.scenes} scenes of {self.images}" if self.images > 1 else f"{self.scenes:,} images"
        frequent = f"{100 * self.most:g} to {100 * self.least:g}" if self.most > self.least else f"{100 * self.most:g}"
        return f"{among}, {self.labels} labels of {frequent} % of images"


CASES = (
    Case(100, 1, 5, 0.3, 0.3),
    Case(300, 1, 5, 0.3, 0.3),
    Case(300, 1, 6, 0.5, 0.03),
    Case(300, 1, 10, 0.02, 0.02),
    Case(300, 1, 20, 0.5, 0.01),
    Case(100, 1, 10, 0.02, 0.02),
    Case(60, 5, 5, 0.3, 0.3),
    Case(200, 4, 5, 0.3, 0.3),
    Case(60, 5, 20, 0.5, 0.01),
)


def coverage(case: Case, trials: int = TRIALS) -> dict[str, Coverage]:
    """Return the coverage of each figure over accuracies; those that mostly have no interval are left out."""
    shares = defaultdict[str, list[float]](list)
    for accuracy in ACCURACIES:
        rng = np.random.default_rng(round(1000 * accuracy))
        truth = _scores(rng, replace(case, scenes=200_000, images=1), accuracy)
        scored = [_scores(rng, case, accuracy) for _ in range(trials)]
        for name in FIGURES:
            shown = [found[name] for found in scored if "low" in found[name]]
            if len(shown) > trials / 2:
                held = [found["low"] <= truth[name]["value"] <= found["high"] for found in shown]
                shares[name].append(float(np.mean(held)))
    return {name: Coverage.of(found) for name, found in shares.items()}


def _scores(rng: np.random.Generator, case: Case, accuracy: float) -> dict[str, Any]:
    """Draw labels and predictions (n, k), and score them."""
    scene = np.arange(case.scenes).repeat(case.images)
    labels = (rng.random((case.scenes, case.labels)) < np.geomspace(case.most, case.least, case.labels))[scene]
    of_scene, own = (rng.normal(size=(size, case.labels)) for size in (case.scenes, len(scene)))
    margin = np.sqrt(case.alike) * of_scene[scene] + np.sqrt(1 - case.alike) * own + stats.norm.ppf(accuracy)
    chances = 1 / (1 + np.exp(np.where(labels, -2 * margin, 2 * margin)))
    names = [f"label {number}" for number in range(case.labels)]
    domains, thresholds = np.full(len(scene), "field"), np.full(case.labels, 0.5, np.float32)
    return score(labels, chances.astype(np.float32), thresholds, domains, names, scene)


def main() -> None:
    """Print the coverage of every figure in every case, in per cent, as Markdown."""
    print("| | " + " | ".join(name.replace("_", " ") for name in FIGURES) + " |\n|---|" + "--:|" * len(FIGURES))
    for case in CASES:
        found = coverage(case)
        print(f"| {case} | {' | '.join(in_percent(found.get(name)) for name in FIGURES)} |", flush=True)


if __name__ == "__main__":
    main()
