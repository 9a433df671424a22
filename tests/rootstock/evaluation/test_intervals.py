"""The standard error behind every interval is that of a bootstrap over groups."""

import numpy as np
import pytest

from rootstock.evaluation.intervals import WeightedImages
from rootstock.evaluation.metrics import score

GROUPS, CLASSES, RESAMPLES = 400, 3, 4000
FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "top5", "log_loss", "brier")  # in the order of `score`


@pytest.fixture(scope="module")
def images():
    """Labels (n,), probabilities (n, k) and groups (n,): of an image or up to eight, mostly right or wrong together."""
    rng = np.random.default_rng(0)
    groups = np.arange(GROUPS).repeat(rng.integers(1, 9, GROUPS))
    labels = rng.integers(0, CLASSES, GROUPS)[groups]
    logits = rng.normal(0, 0.5, (len(groups), CLASSES)) + rng.normal(0, 1, (GROUPS, CLASSES))[groups]
    logits[np.arange(len(groups)), labels] += 1.5
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), groups


def figures_of(weights, labels, probabilities):
    """The figures of images with weights (resamples, n), by their definitions."""
    predicted = probabilities.argmax(1)
    hits, own = predicted == labels, probabilities[np.arange(len(labels)), labels]
    of_class = [(labels == index, predicted == index) for index in range(CLASSES)]
    mean = weights.sum(1)
    return {
        "accuracy": weights @ hits / mean,
        "balanced_accuracy": np.mean([weights @ (hits & of) / (weights @ of) for of, _ in of_class], axis=0),
        "macro_f1": np.mean([2 * weights @ (of & to) / (weights @ of + weights @ to) for of, to in of_class], axis=0),
        "log_loss": weights @ -np.log(own) / mean,
        "brier": weights @ ((probabilities**2).sum(1) - 2 * own + 1) / mean,
    }


def test_the_variance_of_each_figure_is_that_of_resampled_groups(images, monkeypatch):
    labels, probabilities, groups = images
    found = []
    compute = WeightedImages.bootstrap_variance
    monkeypatch.setattr(
        WeightedImages, "bootstrap_variance", lambda *args: found.append(compute(*args)) or compute(*args)
    )
    score(labels, probabilities, np.full(len(labels), "x"), list("abc"), groups=groups)
    variances = dict(zip([name for name in FIGURES if name != "top5"], found, strict=False))
    drawn = np.random.default_rng(1).multinomial(GROUPS, np.full(GROUPS, 1 / GROUPS), RESAMPLES)
    for name, resampled in figures_of(drawn[:, groups].astype(float), labels, probabilities).items():
        assert variances[name] ** 0.5 == pytest.approx(resampled.std(), rel=0.05), name


def test_images_of_a_group_widen_an_interval(images):
    labels, probabilities, groups = images
    of = {
        name: score(labels, probabilities, np.full(len(labels), "x"), list("abc"), groups=own)
        for name, own in (("grouped", groups), ("apart", None))
    }
    for name in (figure for figure in FIGURES if figure != "top5"):
        wide, narrow = (of[key][name]["high"] - of[key][name]["low"] for key in ("grouped", "apart"))
        assert wide > 1.3 * narrow, name
