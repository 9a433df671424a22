"""Figures of images with any number of classes: scikit-learn's values, and intervals that cover."""

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from sklearn import metrics as sklearn

from rootstock.evaluation import verdict
from rootstock.evaluation.multi_label_metrics import score
from rootstock.evaluation.multi_label_predictions import MultiLabelPredictions, confused_sets
from rootstock.training.outcomes import overlaps

NAMES = ["ant", "bee", "cat", "dog"]


def simulated(n: int, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels and calibrated probabilities."""
    draw = np.random.default_rng(seed)
    logits = draw.normal([-1.0, -0.5, 0.3, -2.0][:k], 2, (n, k))
    chances = 1 / (1 + np.exp(-logits))
    return draw.random((n, k)) < chances, chances.astype(np.float32)


def scored(labels, chances, cuts=0.5, domains=None, groups=None):
    n, k = labels.shape
    cuts = np.broadcast_to(np.float32(cuts), k)
    groups = np.arange(n) if groups is None else groups
    return score(labels, chances, cuts, np.full(n, "d") if domains is None else domains, NAMES[:k], groups)


@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
@example(1259, 2)  # one class alone occurs in labels and predictions
@settings(max_examples=60, deadline=None)
def test_figures_are_scikit_learns(seed, n):
    labels, chances = simulated(n, seed=seed)
    cuts = np.float32([0.5, 0.3, 0.6, 0.2])
    predicted, found = chances >= cuts, scored(labels, chances, cuts)
    given_zero = {"zero_division": 1.0}
    expected = {
        "accuracy": sklearn.jaccard_score(labels, predicted, average="samples", **given_zero),
        "exact_match": sklearn.accuracy_score(labels, predicted),
        "log_loss": -np.log(np.clip(np.where(labels, chances, 1 - chances.astype(float)), 1e-7, 1)).mean(),
        "brier": ((chances - labels.astype(float)) ** 2).mean(),
    }
    if (labels | predicted).any():
        some = (labels | predicted).any(axis=0)
        # Not average="macro" of the columns that count: scikit-learn reads a lone column as two classes.
        expected["macro_f1"] = sklearn.f1_score(labels, predicted, average=None, zero_division=0)[some].mean()
        expected["micro_f1"] = sklearn.f1_score(labels, predicted, average="micro", zero_division=0)
    ranked = labels.any(axis=0) & ~labels.all(axis=0)
    if ranked.any():
        own = labels[:, ranked], chances[:, ranked]
        expected["average_precision"] = sklearn.average_precision_score(*own, average="macro")
        expected["roc_auc"] = sklearn.roc_auc_score(*own, average="macro")
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=2e-5), name
    for index, name in enumerate(NAMES):
        own = found["classes"][name]
        assert (own["images"], own["threshold"]) == (labels[:, index].sum(), pytest.approx(cuts[index], abs=1e-6))
        if own["images"]:
            both = labels[:, index], predicted[:, index]
            assert own["recall"]["value"] == pytest.approx(sklearn.recall_score(*both), abs=1e-6)
            assert own["precision"]["value"] == pytest.approx(sklearn.precision_score(*both, zero_division=0), abs=1e-6)
            assert own["f1"]["value"] == pytest.approx(sklearn.f1_score(*both), abs=1e-6)


def test_domains_are_scored_apart():
    labels, chances = simulated(80)
    domains = np.array(["garden", "meadow"])[np.arange(80) % 2]
    found = scored(labels, chances, domains=domains)
    for place, name in enumerate(["garden", "meadow"]):
        alone = scored(labels[place::2], chances[place::2])
        for figure in ("accuracy", "exact_match", "macro_f1", "log_loss"):
            assert found["domains"][name][figure] == alone[figure]


def test_macro_f1_of_a_label_in_few_scenes_has_no_interval():
    labels, chances = simulated(50)
    labels, chances, groups = (np.repeat(part, 4, axis=0) for part in (labels, chances, np.arange(50)))
    often = (np.arange(50) < 12).repeat(4)
    labels[:] = often[:, None]  # each label in 12 scenes of 50
    assert "low" in scored(labels, chances, groups=groups)["macro_f1"]
    labels[:4] = False  # in 11
    found = scored(labels, chances, groups=groups)
    assert "low" not in found["macro_f1"]
    assert "low" in found["accuracy"]
    assert "low" in scored(labels, chances)["macro_f1"]  # every image its own group


def test_one_image_said_to_have_a_label_that_none_has_hardly_widens_macro_f1():
    labels, chances = simulated(600)
    labels[:, 3], chances[:, 3] = False, 0
    before = scored(labels, chances)["macro_f1"]
    chances[7, 3] = 1
    after = scored(labels, chances)["macro_f1"]
    assert after["high"] - after["low"] < 1.3 * (before["high"] - before["low"])


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_the_best_constant_answer_is_no_worse_than_any_of_the_most_frequent_classes(seed, n):
    labels, chances = simulated(n, seed=seed)
    found = scored(labels, chances)["constant"]
    label, accuracy = verdict.most_frequent({"constant": found, "classes": {}})
    order = np.argsort(-labels.sum(axis=0), kind="stable")
    for count in range(5):
        answer = np.isin(np.arange(4), order[:count])
        assert accuracy >= overlaps(np.broadcast_to(answer, labels.shape), labels).mean() - 1e-6
    assert label == (", ".join(found["label"].split(";")) or "none of the classes")


@pytest.mark.parametrize(
    "wrong", [{"labels": np.zeros((0, 2), bool)}, {"chances": np.zeros((3, 1), np.float32)},
              {"chances": np.full((3, 2), np.nan, np.float32)}],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(wrong):
    given_ = {"labels": np.zeros((3, 2), bool), "chances": np.zeros((3, 2), np.float32)} | wrong
    with pytest.raises(ValueError, match=r"expected labels|not finite"):
        scored(given_["labels"], given_["chances"])


# What a model predicts


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_a_confusion_matrix_has_every_label_and_every_answer(seed, n):
    labels, chances = simulated(n, seed=seed)
    predicted = chances >= 0.5
    actual, answered = confused_sets(labels, predicted)
    hits = actual == answered
    assert np.bincount(actual[hits], minlength=5)[:4].tolist() == (labels & predicted).sum(axis=0).tolist()
    assert not (hits & (actual == 4)).any()
    for index in range(4):
        missed, wrong = labels & ~predicted, predicted & ~labels
        assert ((actual == index) & ~hits).sum() == (missed[:, index] * np.maximum(wrong.sum(axis=1), 1)).sum()
        assert ((answered == index) & ~hits).sum() == (wrong[:, index] * np.maximum(missed.sum(axis=1), 1)).sum()


def test_an_answer_is_as_sure_as_its_surest_mistake_or_else_its_least_sure_class():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    chances = np.float32([[0.9, 0.2, 0.4], [0.95, 0.3, 0.7], [0.1, 0.2, 0.05]])
    found = MultiLabelPredictions.of(chances, labels, np.float32([0.5, 0.25, 0.5]))
    assert found.texts(["a", "b", "c"]).tolist() == ["a", "a;b;c", ""]
    assert found.is_right(labels).tolist() == [True, False, True]
    assert found.confidence == pytest.approx([0.6, 0.7, 0.8])
    assert [found.explained(labels, image) for image in range(3)] == [[0], [2], []]
    confidence, came_true = found.decisions(labels)
    assert confidence.tolist() == chances.ravel().tolist() and came_true.tolist() == labels.ravel().tolist()
