"""Coverage of the 95 % intervals by simulation: how often they hold the true value.

    python -m benchmarks.coverage    # the table of docs/retraining.md, in about half an hour

The mistakes in a sample are a small whole number, so that the coverage at a single accuracy jumps about the promise
as the accuracy changes, whatever the interval (Brown, Cai and DasGupta 2001). As a user's accuracy may be any, each
sample is of a classifier with another one; the extremes over single accuracies are printed, too.

tests/rootstock/evaluation/test_error_rates.py holds the intervals to it.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.decisions import draw
from rootstock.config.params import Retrain
from rootstock.evaluation import paired
from rootstock.evaluation.class_means import balanced_share, balancing_weights
from rootstock.evaluation.intervals import sample_size
from rootstock.evaluation.metrics import score

TRIALS = 1000  # of each accuracy
ACCURACIES = (0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.99)
GAINS, DIFFER = (-0.1, -0.03, 0.0, 0.03, 0.1), (0.04, 0.06, 0.1, 0.2, 0.3)  # true gain; share that only one has right
# Scenes, images per scene, and the share of images that both models answer as the rest of their scene.
PAIRED = (
    (40, 1, 1), (100, 1, 1), (300, 1, 1), (1000, 1, 1), (60, 5, 1), (60, 5, 0.7), (60, 5, 0.3), (40, 10, 1),
    (40, 10, 0.7), (40, 10, 0.3), (30, 10, 1),
)  # fmt: skip
# Classes in a balanced accuracy: images, true gain, share that only one model has right.
UNBALANCED = (
    ((380, 0, 0.02), (20, 0, 0.3)),
    ((380, 0, 0.06), (40, 0, 0.06)),
    ((1500, 0, 0.01), (60, -0.2, 0.24)),
    ((3800, 0, 0), (40, -0.08, 0.2)),
    (*[(100, 0, 0.1)] * 5, *[(20, 0, 0.3)] * 5),
    (*[(100, 0, 0.02)] * 5, *[(20, -0.08, 0.2)] * 5),
    ((380, 0, 0.15), (20, -0.08, 0.08)),
    ((3800, 0, 0.3), (40, -0.08, 0.08)),
)
# Common classes and rare ones: how many, and the images of each.
RARE = (
    ((1, 380), (1, 20)), ((1, 380), (1, 40)), ((1, 1500), (1, 60)), ((1, 3800), (1, 40)), ((5, 100), (5, 20)),
    ((10, 200), (1, 20)), ((10, 60), (10, 6)), ((3, 100), (1, 10)),
)  # fmt: skip
RECALLS = (0.8, 0.9, 0.95, 0.98, 1.0)  # of common classes, and of rare ones
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
        mixed: whether the sizes of scenes are geometrically distributed, with that mean.
        tail: how many times as frequent the first class is as the last; frequencies fall geometrically.
    """

    scenes: int
    images: int
    classes: int = 5
    alike: float = 0.7
    mixed: bool = False
    tail: float = 1

    def __str__(self) -> str:
        """Describe the case."""
        size = f"{self.scenes} scenes of {'about ' if self.mixed else ''}{self.images}"
        among = size if self.images > 1 else f"{self.scenes:,} images"
        rarest = f", the first {self.tail:g} times as frequent as the last" if self.tail > 1 else ""
        return f"{among}, {self.classes} classes{rarest}" + (f", alike {self.alike:g}" if self.images > 1 else "")


CASES = (
    Case(100, 1),
    Case(250, 1),
    Case(1000, 1, classes=10),
    Case(60, 5),
    Case(30, 10),
    Case(30, 10, alike=1.0),
    Case(30, 10, alike=0.3),
    Case(30, 10, classes=2),
    Case(100, 5, classes=10),
    Case(60, 8, mixed=True),
    Case(12, 10, classes=3),
    Case(400, 1, classes=2, tail=19),
    Case(1500, 1, classes=2, tail=25),
    Case(300, 1, classes=10, tail=20),
    Case(200, 4, classes=4, tail=10),
    Case(60, 5, classes=4, tail=10),
)


@dataclass(frozen=True)
class Coverage:
    """The share of 95 % intervals that hold the truth: over all accuracies, and the extremes over single ones."""

    mean: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, shares: Sequence[float]) -> "Coverage":
        """Summarise the share of each accuracy, or of each pair of models."""
        return cls(float(np.mean(shares)), min(shares), max(shares))


def predictions(rng: np.random.Generator, case: Case, accuracy: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw labels (n,), probabilities (n, k) of a classifier of about an accuracy, and the scene (n,) of each image."""
    k, sizes = case.classes, np.full(case.scenes, case.images)
    scene = np.arange(case.scenes).repeat(rng.geometric(1 / case.images, case.scenes) if case.mixed else sizes)
    n = len(scene)
    frequencies = np.geomspace(case.tail, 1, k)
    labels = rng.choice(k, case.scenes, p=frequencies / frequencies.sum())[scene]
    margin = np.sqrt(case.alike) * rng.normal(size=case.scenes)[scene] + np.sqrt(1 - case.alike) * rng.normal(size=n)
    rival = np.where(rng.random(n) < case.alike, rng.integers(1, k, case.scenes)[scene], rng.integers(1, k, n))
    logits = rng.normal(0, 0.3, (n, k))
    logits[np.arange(n), (labels + rival) % k] = 0.8
    logits[np.arange(n), labels] = 0.8 + 2 * (margin + stats.norm.ppf(accuracy))
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    return labels, chances / chances.sum(axis=1, keepdims=True), scene


def coverage(case: Case, trials: int = TRIALS, accuracies: Sequence[float] = ACCURACIES) -> dict[str, Coverage]:
    """Return the coverage of each figure; those that have no interval are left out."""
    shares = defaultdict[str, list[float]](list)
    for accuracy in accuracies:
        for name, share in _coverage_at(accuracy, case, trials).items():
            shares[name].append(share)
    return {name: Coverage.of(found) for name, found in shares.items()}


def _coverage_at(accuracy: float, case: Case, trials: int) -> dict[str, float]:
    rng = np.random.default_rng(round(1000 * accuracy))
    truth = dict(_figures(_scores(rng, replace(case, scenes=300_000, images=1, mixed=False), accuracy)))
    held, drawn = defaultdict[str, list[bool]](list), defaultdict[str, int](int)
    for _ in range(trials):
        for key, found in _figures(_scores(rng, case, accuracy)):
            drawn[key[0]] += 1
            if "low" in found:
                held[key[0]].append(found["low"] <= truth[key]["value"] <= found["high"])
    return {name: float(np.mean(held[name])) for name in drawn if len(held[name]) > drawn[name] / 2}


def _scores(rng: np.random.Generator, case: Case, accuracy: float) -> dict[str, Any]:
    labels, chances, scene = predictions(rng, case, accuracy)
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


def coverage_of_gain(scenes: int, images: int, alike: float = 1, trials: int = TRIALS) -> Coverage | None:
    """Return the coverage of the interval of a gain, over all true gains and shares of images on which models differ.

    Args:
        scenes: how many.
        images: per scene.
        alike: share of images that are answered as the rest of their scene; 1 if a scene is right or wrong as a whole.
        trials: of each gain and share.

    Returns:
        None if no interval is shown.
    """
    shares = []
    for gain, differ in product(GAINS, DIFFER):
        if abs(gain) <= differ:
            rng = np.random.default_rng([round(1000 * differ), round(1000 * (gain + 1))])
            size = scenes * images
            drawn = (draw(rng, size, gain, differ, scene=images, alike=alike) for _ in range(trials))
            found = [paired.gain(*outcome).interval for outcome in drawn]
            if "low" not in found[0]:
                return None
            shares.append(float(np.mean([own["low"] <= gain <= own["high"] for own in found])))
    return Coverage.of(shares)


def coverage_with_rare_classes(
    common: tuple[int, int], rare: tuple[int, int], trials: int = TRIALS // 5
) -> Coverage | None:
    """Return the coverage of the interval of a gain in balanced accuracy, over true gains and how far models differ.

    Args:
        common: how many common classes there are, and the images of each.
        rare: the same of the rare ones, of which the models differ on another share.
        trials: of each gain and pair of shares.

    Returns:
        None if no interval is shown.
    """
    shares = []
    for gain, differ, differ_rare in product(GAINS, DIFFER, DIFFER):
        if abs(gain) <= min(differ, differ_rare):
            classes = [(common[1], gain, differ)] * common[0] + [(rare[1], gain, differ_rare)] * rare[0]
            found = coverage_of_balanced_gain(classes, margin=0.0, trials=trials)
            if found is None:
                return None
            shares.append(found[0])
    return Coverage.of(shares)


def coverage_with_other_recalls(common: tuple[int, int], rare: tuple[int, int], trials: int = TRIALS // 2) -> Coverage:
    """Return the coverage of balanced accuracy over recalls of common classes, and others of rare ones.

    Args:
        common: how many common classes there are, and the images of each.
        rare: the same of the rare ones.
        trials: of each pair of recalls, at least one of which is below 1.
    """
    shares = []
    labels = np.arange(common[0] + rare[0]).repeat([common[1]] * common[0] + [rare[1]] * rare[0])
    for recalls in product(RECALLS, RECALLS):
        if min(recalls) < 1:
            rng = np.random.default_rng([round(1000 * recall) for recall in recalls])
            chance = np.where(labels < common[0], *recalls)
            truth = float(np.average(recalls, weights=[common[0], rare[0]]))
            drawn = (rng.random(len(labels)) < chance for _ in range(trials))
            found = [balanced_share(hits, labels, np.arange(len(labels))) for hits in drawn]
            shares.append(float(np.mean([own["low"] <= truth <= own["high"] for own in found])))
    return Coverage.of(shares)


def coverage_of_balanced_gain(
    classes: Sequence[tuple[int, float, float]], margin: float, trials: int = TRIALS
) -> tuple[float, float] | None:
    """Return the coverage of the interval of a gain in balanced accuracy, and how often it excludes a loss.

    None if no interval is shown.

    Args:
        classes: images, true gain and share of images of which only one model is right, of each class.
        margin: the loss.
        trials: how many.
    """
    rng, held, excluded = np.random.default_rng(0), 0, 0
    weights = balancing_weights(np.repeat(np.arange(len(classes)), [images for images, _, _ in classes]))
    truth = float(np.mean([gain for _, gain, _ in classes]))
    for _ in range(trials):
        differences = np.concatenate([draw(rng, *one)[0] for one in classes])
        won, lost = (float(weights[differences == side].sum()) for side in (1, -1))
        size = sample_size(differences.astype(float), np.arange(len(differences)), weights)
        found = paired.Gain(won - lost, won, lost, size, p_better=1.0)  # whose p would take most of the time
        if "low" not in found.interval:
            return None
        held += found.interval["low"] <= truth <= found.interval["high"]
        excluded += found.exceeds(-margin)
    return held / trials, excluded / trials


def in_percent(found: Coverage | None) -> str:
    """Format the mean, and the extremes in brackets."""
    if found is None:
        return "none"
    return f"{100 * found.mean:.1f} ({100 * found.lowest:.0f} to {100 * found.highest:.0f})"


def main() -> None:
    """Print the coverage of every figure in every case, and of gains, in per cent, as Markdown."""
    names = FIGURES + OF_CLASS
    print("| | " + " | ".join(name.replace("_", " ") for name in names) + " |\n|---|" + "--:|" * len(names))
    for case in CASES:
        figures = coverage(case)
        shown = {"top5": "-"} if case.classes <= 5 else {}
        cells = (shown.get(name) or in_percent(figures.get(name)) for name in names)
        print(f"| {case} | {' | '.join(cells)} |", flush=True)
    print("\n| gain | |\n|---|--:|")
    for scenes, images, alike in PAIRED:
        size = f"{scenes:,} images" if images == 1 else f"{scenes} scenes of {images}, alike {alike:g}"
        print(f"| {size} | {in_percent(coverage_of_gain(scenes, images, alike))} |", flush=True)
    print("\n| | balanced accuracy | gain in it |\n|---|--:|--:|")
    for common, rare in RARE:
        named = " and ".join(f"{count} of {images:,}" for count, images in (common, rare))
        found = (coverage_with_other_recalls(common, rare), coverage_with_rare_classes(common, rare))
        print(f"| classes: {named} images | {' | '.join(map(in_percent, found))} |", flush=True)
    margin = Retrain().margin
    print(f"\n| gain in balanced accuracy | true gain | coverage | shown to be above -{margin} |\n|---|--:|--:|--:|")
    for classes in UNBALANCED:
        named = ", ".join(f"{classes.count(one)} of {one[0]:,}" for one in dict.fromkeys(classes))
        held, excluded = coverage_of_balanced_gain(classes, margin) or (math.nan, math.nan)
        truth = 100 * np.mean([gain for _, gain, _ in classes])
        print(
            f"| classes: {named} images | {truth:+.0f} points | {100 * held:.1f} | {100 * excluded:.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
