"""Error rates and coverage by simulation: what docs/retraining.md promises of decisions and intervals."""

import pytest

from benchmarks import coverage, multi_label_coverage
from benchmarks.decisions import BETTER, TRIALS, Domain, outcomes
from rootstock.config.params import Retrain
from rootstock.model.history import PROMOTED
from tests.slow import slow

SETTINGS = Retrain()


def promoted(**domains: Domain) -> float:
    """Return the share of trials in which the challenger is promoted; the domain "new" is new."""
    return outcomes(SETTINGS, domains)[PROMOTED] / TRIALS


@pytest.mark.parametrize("differ", [0.3, *slow(0.06)])
def test_equally_good_models_are_promoted_in_at_most_5_percent_where_images_come_in_scenes(differ):
    scenes = {"images": 300, "gain": 0, "differ": differ, "scene": 10}
    assert promoted(old=scenes, new=scenes) <= 0.05


@pytest.mark.parametrize("images", [100, *slow(40, 400)])
def test_a_loss_of_10_points_on_an_older_domain_is_promoted_in_at_most_5_percent(images):
    assert promoted(old={"images": images, "gain": -0.1, "differ": 0.14}, new=BETTER) <= 0.05


@pytest.mark.parametrize(
    "there", [(40, 0.3), *slow((40, 0.14), (40, 0.5), (100, 0.14), (100, 0.5), (400, 0.3))], ids=str
)
def test_a_loss_on_what_was_there_is_promoted_in_at_most_5_percent_where_more_of_the_domain_is_delivered(there):
    images, differ = there
    old = {"images": images, "gain": -0.1, "differ": differ}
    assert promoted(old=old, more=BETTER) <= 0.055  # the simulation's own error is 0.005


@pytest.mark.slow
def test_a_loss_of_the_margin_on_an_older_domain_is_promoted_in_at_most_5_percent():
    loss = {"images": 400, "gain": -SETTINGS.margin, "differ": 0.06}
    assert promoted(old=loss, new=BETTER) <= 0.06  # the simulation's own error is 0.005


def test_a_gain_of_10_points_on_a_new_domain_without_loss_elsewhere_is_promoted_in_at_least_80_percent():
    assert promoted(old={"images": 400, "gain": 0, "differ": 0.06}, new=BETTER) >= 0.8


LIKELY_TO_MISLEAD = (coverage.UNBALANCED[3], coverage.UNBALANCED[6])  # the loss is of the rare class alone
FAST = (coverage.Case(30, 10), coverage.Case(400, 1, classes=2, tail=19))
FAST_OF_LABELS = (multi_label_coverage.Case(300, 1, 6, 0.5, 0.03),)


@pytest.mark.parametrize(
    "case",
    [*FAST, *(pytest.param(case, marks=pytest.mark.slow) for case in coverage.CASES if case not in FAST)],
    ids=str,
)
def test_95_percent_intervals_contain_the_true_value_in_93_to_97_percent_of_samples(case):
    for name, found in coverage.coverage(case, trials=60).items():
        assert 0.91 <= found.mean <= 0.985, (name, found)  # 0.93 to 0.97, and two errors of so short a simulation


@pytest.mark.parametrize(
    "case",
    [*FAST_OF_LABELS, *slow(*(case for case in multi_label_coverage.CASES if case not in FAST_OF_LABELS))],
    ids=str,
)
def test_intervals_of_images_with_several_labels_contain_the_true_value_in_93_to_97_percent_of_samples(case):
    for name, found in multi_label_coverage.coverage(case, trials=100).items():
        assert 0.91 <= found.mean <= 0.985, (name, found)


def test_figures_of_too_few_groups_have_no_interval():
    few = coverage.coverage(coverage.Case(12, 10, classes=3), trials=5, accuracies=(0.9,))
    assert not few
    several = coverage.coverage(coverage.Case(12, 1, classes=3), trials=5, accuracies=(0.9,))
    assert set(several) > {"accuracy", "log_loss", "recall"}


@pytest.mark.parametrize(
    "size", [(100, 1), (40, 10, 0.3), *slow((40, 1), (300, 1), (60, 5), (60, 5, 0.7), (40, 10), (40, 10, 0.7))]
)
def test_the_interval_of_a_gain_contains_the_true_value_in_93_to_97_percent_of_samples(size):
    found = coverage.coverage_of_gain(*size, trials=200)
    assert found and 0.93 <= found.mean <= 0.975  # and an error of so short a simulation


@pytest.mark.parametrize("classes", [coverage.RARE[0], *slow(*coverage.RARE[1:])])
def test_the_interval_of_balanced_accuracy_contains_the_true_value_in_93_to_97_percent_of_samples(classes):
    assert 0.93 <= coverage.coverage_with_other_recalls(*classes, trials=60).mean <= 0.975


@pytest.mark.parametrize("classes", [coverage.RARE[1], *slow(*coverage.RARE[:1], *coverage.RARE[2:])])
def test_the_interval_of_a_balanced_gain_contains_the_true_value_in_93_to_97_percent_of_samples(classes):
    found = coverage.coverage_with_rare_classes(*classes, trials=50)
    assert found is None or 0.93 <= found.mean <= 0.98
    assert (found is None) == (classes == ((3, 100), (1, 10)))  # ten images tell too little of the rare class


@pytest.mark.parametrize("classes", [*LIKELY_TO_MISLEAD, *slow(*coverage.UNBALANCED)])
def test_the_interval_of_a_balanced_gain_allows_for_rare_classes_that_differ_more(classes):
    held, excluded = coverage.coverage_of_balanced_gain(classes, SETTINGS.margin, trials=1000)
    assert 0.93 <= held <= 1  # too wide where a rare class differs no more than the others
    if sum(gain for _, gain, _ in classes) / len(classes) <= -SETTINGS.margin:
        assert excluded <= 0.065  # and an error of so short a simulation


def test_the_gain_on_few_groups_has_no_interval():
    assert coverage.coverage_of_gain(30, 10, trials=1) is None
    assert coverage.coverage_of_gain(30, 1, trials=1) is None
