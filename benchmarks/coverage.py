"""Coverage of the 95 % intervals by simulation: how often they hold the true value.

    python -m benchmarks.coverage    # the table of docs/retraining.md, in about twenty minutes

tests/rootstock/evaluation/test_error_rates.py holds the intervals to it.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from rootstock.evaluation.metrics import score

TRIALS = 4000
FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "top5", "log_loss", "brier")
OF_CLASS = ("recall", "precision", "f1")


@dataclass(frozen=True)
class Case:
    """Test images that come in scenes, and a classifier of them.

    Args:
        scenes: how many; the images of a scene are of one class.
        images: images per scene.
        classes: number of classes.
        alike: correlation of the classifier's margins within a scene: 1 if all its images are right or wrong together.
        accuracy: about the classifier's accuracy.
        mixed: whether the sizes of scenes are geometrically distributed, with that mean.
    """

    scenes: int
    images: int
    classes: int = 5
    alike: float = 0.7
    accuracy: float = 0.92
    mixed: bool = False

    def __str__(self) -> str:
        """Describe the case."""
        size = f"{self.scenes} scenes of {'about ' if self.mixed else ''}{self.images}"
        among = size if self.images > 1 else f"{self.scenes:,} images"
        return f"{among}, {self.classes} classes, accuracy {self.accuracy:.0%}" + (
            f", alike {self.alike:g}" if self.images > 1 else ""
        )


CASES = (
    Case(100, 1),
    Case(250, 1),
    Case(1000, 1, classes=10),
    Case(100, 1, accuracy=0.97),
    Case(60, 5),
    Case(30, 10),
    Case(30, 10, alike=1.0),
    Case(30, 10, alike=0.3),
    Case(30, 10, accuracy=0.8),
    Case(30, 10, accuracy=0.97),
    Case(30, 10, classes=2),
    Case(100, 5, classes=10),
    Case(60, 8, mixed=True),
    Case(12, 10, classes=3),
)


def predictions(rng: np.random.Generator, case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw labels (n,), probabilities (n, k) and the scene (n,) of each image."""
    k, sizes = case.classes, np.full(case.scenes, case.images)
    scene = np.arange(case.scenes).repeat(rng.geometric(1 / case.images, case.scenes) if case.mixed else sizes)
    n = len(scene)
    labels = rng.integers(0, k, case.scenes)[scene]
    margin = np.sqrt(case.alike) * rng.normal(size=case.scenes)[scene] + np.sqrt(1 - case.alike) * rng.normal(size=n)
    rival = np.where(rng.random(n) < case.alike, rng.integers(1, k, case.scenes)[scene], rng.integers(1, k, n))
    logits = rng.normal(0, 0.3, (n, k))
    logits[np.arange(n), (labels + rival) % k] = 0.8
    logits[np.arange(n), labels] = 0.8 + 2 * (margin + stats.norm.ppf(case.accuracy))
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    return labels, chances / chances.sum(axis=1, keepdims=True), scene


def coverage(case: Case, trials: int = TRIALS, seed: int = 1) -> dict[str, float]:
    """Return the share of intervals that hold the truth, by figure; figures that have none are left out."""
    rng = np.random.default_rng(seed)
    truth = dict(_figures(_scores(rng, Case(300_000, 1, case.classes, case.alike, case.accuracy))))
    held, drawn = defaultdict[str, list[bool]](list), defaultdict[str, int](int)
    for _ in range(trials):
        for key, found in _figures(_scores(rng, case)):
            drawn[key[0]] += 1
            if "low" in found:
                held[key[0]].append(found["low"] <= truth[key]["value"] <= found["high"])
    return {name: float(np.mean(held[name])) for name in drawn if len(held[name]) > drawn[name] / 2}


def _scores(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    labels, chances, scene = predictions(rng, case)
    names = [f"class {number}" for number in range(case.classes)]
    return score(labels, chances, np.full(len(labels), "field"), names, groups=scene)


def _figures(scores: dict[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, float]]]:
    """Yield each figure by name and class."""
    for name in FIGURES:
        if name != "top5" or len(scores["classes"]) > 5:
            yield (name, ""), scores[name]
    for label, figures in scores["classes"].items():
        if figures["images"]:
            for name in OF_CLASS:
                yield (name, label), figures[name]


def main() -> None:
    """Print the coverage of every figure in every case in per cent, as a Markdown table."""
    names = FIGURES + OF_CLASS
    print("| | " + " | ".join(name.replace("_", " ") for name in names) + " |\n|---|" + "--:|" * len(names))
    for case in CASES:
        found = coverage(case)
        shown = {"top5": "-"} if case.classes <= 5 else {}
        cells = (f"{100 * found[name]:.1f}" if name in found else shown.get(name, "none") for name in names)
        print(f"| {case} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
