"""Error rates and coverage by simulation: what docs/retraining.md promises of decisions and intervals."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from benchmarks.decisions import BETTER, TRIALS, Domain, draw, outcomes
from rootstock.config.params import Retrain
from rootstock.evaluation import intervals, paired
from rootstock.evaluation.metrics import score
from rootstock.model.history import PROMOTED

SETTINGS = Retrain()


def promoted(**domains: Domain) -> float:
    """Return the share of trials in which the challenger is promoted; the domain "new" is new."""
    return outcomes(SETTINGS, domains)[PROMOTED] / TRIALS


@pytest.mark.parametrize("differ", [0.06, 0.3])
def test_equally_good_models_are_promoted_in_at_most_5_percent_where_images_come_in_scenes(differ):
    scenes = {"images": 300, "gain": 0, "differ": differ, "scene": 10}
    assert promoted(old=scenes, new=scenes) <= 0.05


@pytest.mark.parametrize("images", [40, 100, 400])
def test_a_loss_of_10_points_on_an_older_domain_is_promoted_in_at_most_5_percent(images):
    assert promoted(old={"images": images, "gain": -0.1, "differ": 0.14}, new=BETTER) <= 0.05


def test_a_loss_of_the_margin_on_an_older_domain_is_promoted_in_at_most_5_percent():
    loss = {"images": 400, "gain": -SETTINGS.margin, "differ": 0.06}
    assert promoted(old=loss, new=BETTER) <= 0.06  # the simulation's own error is 0.005


def test_a_gain_of_10_points_on_a_new_domain_without_loss_elsewhere_is_promoted_in_at_least_80_percent():
    assert promoted(old={"images": 400, "gain": 0, "differ": 0.06}, new=BETTER) >= 0.8


def predictions(rng: np.random.Generator, scenes: int, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw labels, probabilities (n, 5) and groups; the images of a scene are of one class, and alike."""
    n, k = scenes * images, 5
    scene = np.arange(scenes).repeat(images)
    labels = rng.integers(0, k, scenes).repeat(images)
    shared = np.sqrt(0.7) * rng.normal(size=scenes)[scene] + np.sqrt(0.3) * rng.normal(size=n)
    logits = rng.normal(0, 0.3, (n, k))
    logits[np.arange(n), (labels + rng.integers(1, k, n)) % k] = 0.8
    logits[np.arange(n), labels] = 0.8 + 2 * (shared + stats.norm.ppf(0.92))
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    return labels, chances / chances.sum(axis=1, keepdims=True), scene


@pytest.mark.parametrize(("scenes", "images"), [(250, 1), pytest.param(60, 5, marks=pytest.mark.slow)])
def test_a_95_percent_interval_contains_the_true_value_in_93_to_97_percent_of_samples(scenes, images):
    trials, names = 500, list("abcde")
    rng = np.random.default_rng(1)
    labels, chances, groups = predictions(rng, 300_000, 1)
    field = np.full(len(labels), "field")
    truth = score(labels, chances, field, names, groups=groups, resamples=1)
    held: Counter[str] = Counter()
    for _ in range(trials):
        labels, chances, groups = predictions(rng, scenes, images)
        found = score(labels, chances, np.full(len(labels), "field"), names, groups=groups, resamples=200)
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier"):
            held[name] += found[name]["low"] <= truth[name]["value"] <= found[name]["high"]
    for name, count in held.items():
        assert 0.91 <= count / trials <= 0.98, (name, count / trials)  # 0.93 to 0.97, and two errors of the simulation


@pytest.mark.parametrize(
    ("scenes", "images", "gain", "differ"),
    [(300, 1, 0.0, 0.06), (300, 1, 0.1, 0.2), (100, 3, 0.0, 0.15), (100, 3, -0.03, 0.05)],
)
def test_the_interval_of_a_gain_contains_the_true_value_in_93_to_97_percent_of_samples(scenes, images, gain, differ):
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(TRIALS):
        found = paired.gain(*draw(rng, scenes * images, gain, differ, scene=images))
        held += abs(found.score(gain)) <= found.size.quantile((1 - intervals.CONFIDENCE) / 2)
    assert 0.925 <= held / TRIALS <= 0.975
