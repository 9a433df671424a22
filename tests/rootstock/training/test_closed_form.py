"""Ridge regression, class prototypes and nearest neighbours: equal to scikit-learn's, and calibrated."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors

from rootstock.config.params import Head as Settings
from rootstock.training import calibration, closed_form, heads
from rootstock.training.class_weights import class_weights
from rootstock.training.head import NEIGHBOUR_TEMPERATURE, SMOOTHING
from rootstock.training.principal_axes import find_principal_axes
from tests.simulated_features import Chunks, simulated

CLASSES = ["a", "b", "c"]


def fit(kind: str, train: Chunks, val: Chunks, class_weight: str = "none"):
    settings = Settings(kind=kind, class_weight=class_weight)
    return heads.fit(train, val, CLASSES, settings, np.arange(len(val))).head


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize(("n", "d"), [(120, 8), (20, 40)])  # more images than features, and fewer
def test_ridge_regression_is_that_of_scikit_learn_for_every_strength(n, d, class_weight):
    train, val = simulated(n, d=d), simulated(50, d=d, seed=1)
    weights = class_weights(train.labels, 3, class_weight)
    own = np.ones(n) if weights is None else weights[train.labels].astype(float)
    axes = find_principal_axes(train, weights)
    mean, variance = np.average(train.x, axis=0, weights=own), None
    variance = np.average((train.x - mean) ** 2, axis=0, weights=own)
    deviation = np.maximum(np.sqrt(variance), 0.3 * np.sqrt(variance.mean()))
    seen: list[np.ndarray] = []
    closed_form.fit_ridge(train, val, CLASSES, axes, weights, lambda logits: seen.append(logits) or 0.0)
    assert len(seen) == len(closed_form.RIDGE_L2)
    for l2, logits in zip(closed_form.RIDGE_L2, seen, strict=True):
        reference = Ridge(alpha=l2).fit((train.x - mean) / deviation, np.eye(3)[train.labels], sample_weight=own)
        expected = reference.predict((val.x - mean) / deviation)
        scale = np.abs(logits).max() / np.abs(expected).max()  # that of calibration
        np.testing.assert_allclose(logits / scale, expected, atol=2e-3)


def test_prototypes_are_the_classes_means_of_normalised_features():
    train, val = simulated(90), simulated(60, seed=1)
    fitted = fit("prototype", train, val)
    centred = train.x - train.x.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    means = np.stack([unit[train.labels == c].mean(axis=0) for c in range(3)])
    cosines = (val.x - train.x.mean(axis=0)) @ means.T / np.linalg.norm(means, axis=1)
    assert (fitted.logits(val.x).argmax(1) == cosines.argmax(1)).all()
    lengths = np.linalg.norm(fitted.weight, axis=1)
    np.testing.assert_allclose(
        fitted.weight / lengths[:, None], means / np.linalg.norm(means, axis=1)[:, None], atol=1e-5
    )


def test_nearest_neighbours_vote_by_similarity_as_those_of_scikit_learn():
    train, val = simulated(90), simulated(60, seed=1)
    fitted = fit("knn", train, val)
    center = train.x.mean(axis=0)
    reference = NearestNeighbors(n_neighbors=fitted.neighbours, metric="cosine").fit(train.x - center)
    distance, nearest = reference.kneighbors(val.x - center)
    votes = np.exp((1 - distance) / NEIGHBOUR_TEMPERATURE)
    shares = np.stack([np.where(train.labels[nearest] == c, votes, 0).sum(1) for c in range(3)], axis=1)
    expected = np.log(shares / shares.sum(1, keepdims=True) + SMOOTHING)
    np.testing.assert_allclose(fitted.logits(val.x), expected, atol=1e-3)
    assert [entry["neighbours"] for entry in fitted.path] == [50, 20, 10, 5]


@pytest.mark.parametrize("kind", ["ridge", "prototype"])
def test_linear_scores_become_calibrated_logits(kind):
    train, val = simulated(300), simulated(300, seed=1)
    fitted = fit(kind, train, val)
    assert calibration.fit_temperature(fitted.logits(val.x), val.labels) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", ["ridge", "prototype", "knn", "logistic"])
def test_every_kind_learns_classes_that_are_apart_and_is_sure_of_them(kind):
    train, val = simulated(200, apart=4), simulated(100, apart=4, seed=1)
    fitted = fit(kind, train, val)
    assert fitted.kind == kind and fitted.val_accuracy > 0.98
    chances = softmax(fitted.logits(val.x), axis=1)
    assert (chances.max(axis=1) > 0.8).mean() > 0.8


@pytest.mark.parametrize("kind", ["ridge", "prototype", "knn", "logistic"])
def test_balanced_class_weights_raise_the_recall_of_a_rare_class(kind):
    def rare(n: int, seed: int) -> Chunks:
        drawn = simulated(n, seed=seed)
        kept = (drawn.labels != 2) | (np.random.default_rng(seed).random(n) < 0.05)
        return Chunks(drawn.x[kept], drawn.labels[kept])

    train, val, test = rare(1500, 0), rare(1500, 1), simulated(1500, seed=2)
    recall = [
        (fit(kind, train, val, weight).logits(test.x).argmax(1) == 2)[test.labels == 2].mean()
        for weight in ("none", "balanced")
    ]
    assert recall[1] > recall[0] if kind != "prototype" else recall[1] >= recall[0] - 0.05


def test_fewer_images_than_neighbours_vote_all():
    assert fit("knn", simulated(4), simulated(20, seed=1)).neighbours == 4
