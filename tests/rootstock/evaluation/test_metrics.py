"""Metrics: equal to scikit-learn's, with intervals of the right coverage."""

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from rootstock.evaluation.metrics import BINS, reliability, score
from rootstock.training import calibration
from tests.simulated_predictions import simulated

WITH_INTERVAL = ("accuracy", "balanced_accuracy", "macro_f1", "top5", "log_loss", "brier")
FIGURES = [*WITH_INTERVAL, "ece"]


def names(k: int) -> list[str]:
    return [f"class {c}" for c in range(k)]


def intervals(result: dict) -> list[dict]:
    """Every {"value"} and {"value", "low", "high"} anywhere in a result."""
    if "value" in result:
        return [result]
    return [found for inner in result.values() if isinstance(inner, dict) for found in intervals(inner)]


@st.composite
def predictions(draw):
    n, k = draw(st.integers(1, 40)), draw(st.integers(2, 8))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Rounded logits make ties, sharp ones probabilities of exactly 0 and 1.
    logits = (generator.normal(size=(n, k)) * draw(st.sampled_from([0, 1, 200]))).round(1).astype(np.float32)
    domains = np.array(["a", "b", "c"])[generator.integers(0, draw(st.integers(1, 3)), n)]
    return generator.integers(0, k, n), calibration.probabilities(logits), domains, names(k)


@given(predictions())
@settings(max_examples=60, deadline=None)
def test_every_interval_contains_its_value_and_the_result_is_plain_json(prediction):
    labels, probabilities, domains, classes = prediction
    result = score(labels, probabilities, domains, classes)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for interval in intervals(result):
        assert list(interval) in (["value", "low", "high"], ["value"])
        assert 0 <= interval.get("low", 0) <= interval["value"] <= interval.get("high", np.inf)
        assert all(round(end, 6) == end for end in interval.values())
    for figures in [result, *result["domains"].values()]:
        assert figures["accuracy"]["value"] <= figures["top5"]["value"] <= 1
        assert figures["macro_f1"].get("high", 1) <= 1 and figures["accuracy"]["high"] <= 1
    assert sum(domain["images"] for domain in result["domains"].values()) == len(labels)
    assert sum(one["images"] for one in result["classes"].values()) == len(labels)


@given(predictions())
@settings(max_examples=60, deadline=None)
def test_values_equal_those_of_scikit_learn(prediction):
    labels, probabilities, domains, classes = prediction
    k = len(classes)
    result = score(labels, probabilities, domains, classes)
    for place, figures in [(None, result), *result["domains"].items()]:
        among = np.ones(len(labels), bool) if place is None else domains == place
        truth, chances = labels[among], probabilities[among]
        guess = chances.argmax(axis=1)
        assert figures["accuracy"]["value"] == pytest.approx((truth == guess).mean(), abs=1e-6)
        f1 = sklearn_metrics.f1_score(truth, guess, average="macro")
        assert figures["macro_f1"]["value"] == pytest.approx(f1, abs=1e-6)
        loss = sklearn_metrics.log_loss(truth, chances, labels=range(k))
        assert figures["log_loss"]["value"] == pytest.approx(loss, abs=1e-4)
        recalls = sklearn_metrics.recall_score(truth, guess, labels=np.unique(truth), average="macro")
        assert figures["balanced_accuracy"]["value"] == pytest.approx(recalls, abs=1e-6)
        brier = ((chances - np.eye(k)[truth]) ** 2).sum(axis=1).mean()
        assert figures["brier"]["value"] == pytest.approx(brier, abs=1e-5)
    if len(present := np.unique(labels)) > 1:
        pairs = [(labels == c, probabilities[:, c]) for c in present]
        for name in ("roc_auc", "average_precision"):
            expected = np.mean([getattr(sklearn_metrics, f"{name}_score")(*pair) for pair in pairs])
            assert result[name]["value"] == pytest.approx(expected, abs=1e-6)
    guess = probabilities.argmax(axis=1)
    precision, recall, f1, images = sklearn_metrics.precision_recall_fscore_support(
        labels, guess, labels=range(k), zero_division=0
    )
    for c, name in enumerate(classes):
        figures = result["classes"][name]
        assert figures["images"] == images[c]
        if images[c]:
            values = [figures[metric]["value"] for metric in ("precision", "recall", "f1")]
            assert values == pytest.approx([precision[c], recall[c], f1[c]], abs=1e-6)


def test_top5_equals_that_of_scikit_learn():
    labels, logits, domains = simulated(500, 12)
    result = score(labels, calibration.probabilities(logits), domains, names(12))
    expected = sklearn_metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(12))
    assert result["top5"]["value"] == pytest.approx(expected, abs=1e-6)


def test_top5_of_three_classes_is_one():
    labels, logits, domains = simulated(50, 3)
    assert score(labels, calibration.probabilities(logits), domains, names(3))["top5"]["value"] == 1.0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy_in_15_bins():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.62, 0.62], dtype=np.float32)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.array([0, 0, 0, 1, 0, 1])  # 3 of 4 right at 0.95, 1 of 2 right at 0.62
    result = score(labels, probabilities, np.full(6, "field"), names(2))
    assert 0 <= result["ece"]["value"] < (4 * 0.20 + 2 * 0.12) / 6  # less what noise adds to it
    assert [list(np.round(row, 3)) for row in reliability(probabilities.max(1), probabilities.argmax(1) == labels)] == [
        [0.62, 0.95],
        [0.5, 0.75],
        [2, 4],
    ]


@given(predictions())
@settings(max_examples=30, deadline=None)
def test_calibration_error_is_at_most_the_gap_of_the_reliability_bins(prediction):
    labels, probabilities, domains, classes = prediction
    confidence, accuracy, images = reliability(probabilities.max(1), probabilities.argmax(1) == labels)
    assert images.sum() == len(labels) and 1 <= len(images) <= BINS and (images > 0).all()
    gap = (images * np.abs(confidence - accuracy)).sum() / len(labels)
    error = score(labels, probabilities, domains, classes)["ece"]["value"]
    assert error <= gap + 1e-6
    if ((accuracy == 0) | (accuracy == 1)).all():  # no noise to take off
        assert error == pytest.approx(gap, abs=1e-6)


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_calibration_error_is_closer_to_the_true_value_than_the_gap_of_the_bins(sharpness):
    def errors(n: int, seed: int) -> tuple[float, float]:
        labels, logits, domains = simulated(n, 4, seed=seed)
        probabilities = calibration.probabilities(sharpness * logits)
        confidence, accuracy, images = reliability(probabilities.max(1), probabilities.argmax(1) == labels)
        gap = float((images * np.abs(confidence - accuracy)).sum() / n)
        return score(labels, probabilities, domains, names(4))["ece"]["value"], gap

    truth, _ = errors(200_000, 1)  # 0.002 for a sharpness of 1, at which the model is calibrated; 0.14 for 2
    ours, gap = np.mean([errors(300, seed) for seed in range(2, 62)], axis=0)
    assert abs(ours - truth) < 0.7 * abs(gap - truth)


def test_proportions_have_wilson_intervals():
    labels = np.zeros(10, dtype=np.int64)
    probabilities = np.tile(np.float32([0.9, 0.1]), (10, 1))
    probabilities[:2] = [0.1, 0.9]
    result = score(labels, probabilities, np.full(10, "field"), names(2))
    expected = stats.binomtest(8, 10).proportion_ci(0.95, method="wilson")
    for interval in (result["accuracy"], result["classes"]["class 0"]["recall"]):
        assert interval == {"value": 0.8, "low": round(expected.low, 6), "high": round(expected.high, 6)}


def test_intervals_shrink_with_the_number_of_images():
    def widths(n: int) -> dict[str, float]:
        labels, logits, domains = simulated(n, 6, seed=n)
        result = score(labels, calibration.probabilities(3 * logits), domains, names(6))
        return {metric: result[metric]["high"] - result[metric]["low"] for metric in WITH_INTERVAL}

    few, many = widths(100), widths(1600)
    for metric in WITH_INTERVAL:
        # Sixteen times the images: about a quarter of the width.
        assert 0.12 * few[metric] < many[metric] < 0.5 * few[metric], metric


def test_a_class_without_test_images_has_no_figures_but_its_false_positives_count():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.eye(3, dtype=np.float32)[[0, 2, 1, 1]]
    result = score(labels, probabilities, np.full(4, "field"), names(3))
    assert result["classes"]["class 2"] == {"images": 0}
    assert result["macro_f1"]["value"] == pytest.approx((2 / 3 + 1 + 0) / 3, abs=1e-6)


def test_a_class_that_is_never_predicted_has_precision_0_with_an_interval_from_0_to_1():
    probabilities = np.eye(2, dtype=np.float32)[[0, 0, 0]]
    result = score(np.array([0, 0, 1]), probabilities, np.full(3, "field"), names(2))
    assert result["classes"]["class 1"]["precision"] == {"value": 0.0, "low": 0.0, "high": 1.0}


@pytest.mark.parametrize("right", [True, False])
def test_f1_with_all_or_no_predictions_correct_still_has_an_interval(right):
    labels = np.repeat([0, 1], 20)
    probabilities = np.eye(2, dtype=np.float32)[labels if right else 1 - labels]
    result = score(labels, probabilities, np.full(40, "field"), names(2))
    assert result["macro_f1"] == result["accuracy"] and result["macro_f1"]["value"] == float(right)
    f1 = result["classes"]["class 0"]["f1"]
    assert f1["value"] == float(right)
    for interval in (f1, result["macro_f1"]):
        assert interval["high"] - interval["low"] > 0.05


def test_intervals_of_grouped_images_are_as_wide_as_those_of_one_image_per_group():
    labels, logits, domains = simulated(80, 4)
    alone = score(labels, calibration.probabilities(logits), domains, names(4))
    tenfold = [np.repeat(values, 10, axis=0) for values in (labels, calibration.probabilities(logits), domains)]
    scenes = score(*tenfold, names(4), groups=np.arange(80).repeat(10))
    as_if_independent = score(*tenfold, names(4))
    assert (scenes["images"], scenes["groups"]) == (800, 80)
    for metric in WITH_INTERVAL[:3] + WITH_INTERVAL[4:]:
        widths = [one[metric]["high"] - one[metric]["low"] for one in (alone, scenes, as_if_independent)]
        assert widths[1] == pytest.approx(widths[0], rel=0.15), metric
        assert widths[2] < 0.5 * widths[1], metric


def test_macro_f1_has_no_interval_where_most_classes_have_fewer_than_four_images_or_one_comes_in_few_scenes():
    probabilities = np.eye(6)
    for images, shown in ((3, False), (4, True)):
        labels = np.arange(6).repeat(images)
        found = score(labels, probabilities[labels], np.full(len(labels), "field"), names(6))
        assert ("low" in found["macro_f1"], "low" in found["balanced_accuracy"]) == (shown, True)
    for scenes, shown in ((11, False), (12, True)):
        labels = np.array([0] * 80 + [1] * 3 * scenes)
        groups = np.r_[np.arange(80), 80 + np.arange(scenes).repeat(3)]
        found = score(labels, probabilities[labels], np.full(len(labels), "field"), names(6), groups=groups)
        assert ("low" in found["macro_f1"], "low" in found["accuracy"]) == (shown, True)


def test_a_few_near_duplicates_take_no_interval_from_macro_f1():
    labels = np.r_[np.repeat(np.arange(5), 60), [5] * 11]
    groups = np.arange(len(labels))
    groups[1] = 0
    found = score(labels, np.eye(6)[labels], np.full(len(labels), "field"), names(6), groups=groups)
    assert "low" in found["macro_f1"]


def test_one_image_taken_for_a_class_without_test_images_hardly_widens_macro_f1():
    labels = np.arange(10).repeat(300)
    predicted = np.where(np.arange(3000) % 20 == 0, (labels + 1) % 10, labels)
    width = {}
    for stray in (False, True):
        predicted[5] = 10 if stray else labels[5]
        found = score(labels, np.eye(11)[predicted], np.full(3000, "field"), names(11))["macro_f1"]
        width[stray] = found["high"] - found["low"]
    assert width[True] < 1.3 * width[False]


def test_figures_over_classes_without_a_mistake_claim_no_more_than_with_one_in_a_common_class():
    labels = np.array([0] * 380 + [1] * 20)
    predicted = labels.copy()
    perfect = score(labels, np.eye(2)[predicted], np.full(400, "field"), names(2))
    predicted[0] = 1
    one_wrong = score(labels, np.eye(2)[predicted], np.full(400, "field"), names(2))
    for figure in ("balanced_accuracy", "macro_f1"):
        assert perfect[figure]["value"] == 1
        assert abs(perfect[figure]["low"] - one_wrong[figure]["low"]) < 0.03


def test_a_domain_of_one_image_is_scored():
    labels, logits, _ = simulated(50, 4)
    domains = np.array(["field"] * 49 + ["studio"])
    result = score(labels, calibration.probabilities(logits), domains, names(4))
    assert result["domains"]["studio"]["images"] == 1
    assert list(result["domains"]["studio"]) == [*FIGURES, "images", "groups"]


def test_domains_may_come_from_pandas():
    pandas = pytest.importorskip("pandas")
    labels, logits, domains = simulated(20, 3)
    frame = pandas.DataFrame({"domain": domains, "label": labels})
    got = score(frame["label"].to_numpy(), calibration.probabilities(logits), frame["domain"].to_numpy(), names(3))
    assert got == score(labels, calibration.probabilities(logits), domains, names(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([], dtype=np.int64)}, "at least one image to score"),
        ({"labels": np.array([0, 1, 5])}, "labels 0 to 1"),
        ({"labels": np.array([0, 1])}, "expected shapes"),
        ({"probabilities": np.float32([[0.5, 0.5], [np.nan, 1], [1, 0]])}, "1 of 3 images"),
    ],
)
def test_the_error_for_invalid_input_says_what_is_wrong(change, message):
    good = {
        "labels": np.array([0, 1, 1]),
        "probabilities": np.full((3, 2), 0.5, dtype=np.float32),
        "domains": np.array(["field"] * 3),
    }
    with pytest.raises(ValueError, match=message):
        score(**(good | change), classes=names(2))
