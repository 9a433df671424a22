"""The gain of one model over another: McNemar's exact test for single images, a sign-flip test for groups."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from rootstock.evaluation import class_means, paired
from rootstock.evaluation.paired import gain, sign_flip_p

counts = st.integers(0, 60)


def differences(won: int, lost: int, same: int) -> np.ndarray:
    return np.repeat([1, -1, 0], [won, lost, same])


def exact_p(won: int, differ: int, alternative: str) -> float:
    return stats.binomtest(won, differ, alternative=alternative).pvalue if differ else 1.0


def all_signs(count: int) -> Iterator[tuple[int, ...]]:
    return product([1, -1], repeat=count)


@given(won=counts, lost=counts, same=counts)
def test_the_test_is_mcnemars_where_every_group_is_one_image(won, lost, same):
    if won + lost + same == 0:
        return
    images = np.arange(won + lost + same)
    found, mirrored = (gain(sign * differences(won, lost, same), images).p_better for sign in (1, -1))
    for one_sided, better in ((found, won), (mirrored, lost)):
        assert one_sided == pytest.approx(exact_p(better, won + lost, "greater"), rel=1e-6, abs=1e-12)
    two_sided = min(2 * min(found, mirrored), 1.0)
    assert two_sided == pytest.approx(exact_p(won, won + lost, "two-sided"), rel=1e-6, abs=1e-12)


@given(won=st.integers(0, 7), lost=st.integers(0, 6), same=counts)
def test_so_is_that_of_few_images_with_weights(won, lost, same):
    if won + lost + same == 0:
        return
    size = won + lost + same
    found = gain(differences(won, lost, same), np.arange(size), np.full(size, 1 / size))
    assert found.p_better == pytest.approx(exact_p(won, won + lost, "greater"))


@pytest.mark.parametrize(("won", "lost"), [(20, 6), (6, 20), (13, 13), (0, 26), (26, 0)])
def test_and_by_random_flips_that_of_many(won, lost):
    size = won + lost + 9
    found = gain(differences(won, lost, 9), np.arange(size), np.full(size, 1 / size))
    assert found.p_better == pytest.approx(exact_p(won, won + lost, "greater"), abs=0.02)


@pytest.mark.parametrize("weights", [None, np.full(5, 0.2)])
def test_losses_and_models_that_never_differ_are_no_sign_of_a_gain(weights):
    for lost in (0, 1, 3, 5):
        assert gain(differences(0, lost, 5 - lost), np.arange(5), weights).p_better == 1.0


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_the_sign_flip_test_is_exact(sums):
    flips = [sum(sign * abs(size) for sign, size in zip(signs, sums, strict=True)) for signs in all_signs(len(sums))]
    by_hand = np.mean([total >= sum(sums) for total in flips])
    assert sign_flip_p(np.array(sums)) == pytest.approx(by_hand)


@given(won=counts, lost=counts, same=counts, groups=st.integers(1, 40))
@settings(deadline=None)
def test_intervals_contain_their_value_and_swapping_the_models_mirrors_them(won, lost, same, groups):
    if won + lost + same == 0:
        return
    values = differences(won, lost, same)
    group = np.arange(len(values)) % groups
    one, other = gain(values, group), gain(-values, group)
    low, high = (one.bound(0.025, upper=upper) for upper in (False, True))
    assert -1 <= low <= one.value <= high <= 1 and low < high
    assert [low, high] == pytest.approx([-other.bound(0.025, upper=upper) for upper in (True, False)], abs=2e-6)
    assert one.exceeds(low - 0.02) or low <= -0.98


@given(won=counts, lost=counts, same=counts)
@settings(deadline=None)
def test_of_fewer_than_forty_groups_no_interval_is_shown_but_they_decide_as_many(won, lost, same):
    values = differences(won, lost, same)
    found = gain(values, np.arange(len(values))) if len(values) else None
    if found:
        assert ("low" in found.interval) == (len(values) >= 40)
        assert found.interval["value"] == pytest.approx(found.value, abs=1e-6)
        assert found.exceeds(found.bound(0.05, upper=False) - 1e-3) or found.bound(0.05, upper=False) == -1


def test_tangos_interval_keeps_a_width_where_the_models_hardly_differ():
    none, one = (gain(differences(0, lost, 44 - lost), np.arange(44)).interval for lost in (0, 1))
    # With no pair that differs the ends are z² / (n + z²).
    assert none["high"] == pytest.approx(1.959964**2 / (44 + 1.959964**2), abs=1e-4)
    assert none["low"] == pytest.approx(-none["high"])
    assert one["low"] == pytest.approx(-0.118, abs=5e-4)  # Tango (1998): -11.8 %


def test_scenes_in_which_all_images_agree_count_as_one_image_each():
    values = differences(3, 1, 26).repeat(10)
    scenes, images = gain(values, np.arange(30).repeat(10)), gain(differences(3, 1, 26), np.arange(30))
    assert scenes.size.images == pytest.approx(30) and scenes.size.groups == 30
    assert scenes.p_better == pytest.approx(images.p_better)
    assert scenes.bound(0.025, upper=False) == pytest.approx(images.bound(0.025, upper=False))


def test_scenes_whose_images_differ_count_as_more_than_one_image_each():
    alternating = np.where(np.arange(600) % 10 < 5, 1, -1)
    assert 60 < gain(alternating, np.arange(60).repeat(10)).size.images <= 600


def test_twice_the_images_multiply_the_score_by_the_square_root_of_two():
    one = gain(differences(9, 4, 80), np.arange(93))
    two = gain(differences(18, 8, 160), np.arange(186))
    assert np.sqrt(2) * one.score(-0.04) == pytest.approx(two.score(-0.04))


@pytest.mark.parametrize(("won", "lost"), [(1_600, 1_500), (1_650, 1_500), (1_500, 1_500)])
def test_the_total_of_thousands_of_weighted_differences_is_normal(won, lost, monkeypatch):
    rng = np.random.default_rng(0)
    values, weights = differences(won, lost, 500), rng.choice([1.0, 3.0], won + lost + 500)
    weights /= weights.sum()
    normal = gain(values, np.arange(len(values)), weights).p_better
    monkeypatch.setattr(paired, "MANY_SUMS", np.inf)
    flipped = gain(values, np.arange(len(values)), weights).p_better
    assert normal == pytest.approx(flipped, abs=3 * np.sqrt(flipped * (1 - flipped) / paired.FLIPS) + 1e-3)
    assert normal != flipped


@pytest.mark.parametrize(("won", "lost"), [(526, 474), (527, 474), (527, 473), (560, 440), (500, 500)])
def test_of_equal_weights_it_is_the_exact_p_within_two_hundredths(won, lost):
    n = won + lost + 200
    values = differences(won, lost, 200)
    exact, normal = (gain(values, np.arange(n), weights).p_better for weights in (None, np.full(n, 1 / n)))
    assert normal == pytest.approx(exact, rel=0.02)


def test_equal_weights_change_nothing_but_the_computation_of_p():
    values, groups = differences(8, 2, 50), np.arange(60) // 2
    plain, weighted = gain(values, groups), gain(values, groups, np.full(60, 1 / 60))
    assert weighted.interval == pytest.approx(plain.interval)
    assert weighted.p_better == pytest.approx(plain.p_better, abs=0.02)  # few groups differ: all sign flips are tried


@pytest.mark.parametrize(
    ("classes", "shown"), [([100] * 100 + [5], True), ([300, 12], True), ([300, 11], False), ([100] * 3 + [10], False)]
)
def test_a_balanced_gain_has_an_interval_unless_few_images_of_rare_classes_decide_it(classes, shown):
    labels = np.arange(len(classes)).repeat(classes)
    differences = np.where(np.arange(len(labels)) % 9 == 0, 1, 0)
    found = gain(differences, np.arange(len(labels)), class_means.balancing_weights(labels))
    assert ("low" in found.interval) == shown
    assert found.size.few_heavy != shown
