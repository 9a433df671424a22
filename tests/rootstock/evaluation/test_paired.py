"""The gain of one model over another: McNemar's exact test for single images, a sign-flip test for groups."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from rootstock.evaluation.paired import gain, sign_flip_p

counts = st.integers(0, 60)


def differences(won: int, lost: int, same: int) -> np.ndarray:
    return np.repeat([1, -1, 0], [won, lost, same])


@given(won=counts, lost=counts, same=counts)
def test_the_test_is_mcnemars_where_every_group_is_one_image(won, lost, same):
    if won + lost + same == 0:
        return
    found = gain(differences(won, lost, same), np.arange(won + lost + same))
    exact = stats.binomtest(won, won + lost, 0.5).pvalue if won + lost else 1.0
    assert found.p == pytest.approx(exact, rel=1e-6, abs=1e-12)
    if won > lost:
        better = stats.binomtest(won, won + lost, 0.5, alternative="greater").pvalue
        assert found.p_better == pytest.approx(better, rel=1e-6, abs=1e-12)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_the_sign_flip_test_is_exact(sums):
    flips = [
        abs(sum(sign * size for sign, size in zip(signs, sums, strict=True)))
        for signs in product([1, -1], repeat=len(sums))
    ]
    by_hand = np.mean([total >= abs(sum(sums)) for total in flips])
    assert sign_flip_p(np.array(sums)) == pytest.approx(by_hand)


@given(won=counts, lost=counts, same=counts, groups=st.integers(1, 40))
@settings(deadline=None)
def test_intervals_contain_their_value_and_swapping_the_models_mirrors_them(won, lost, same, groups):
    if won + lost + same == 0:
        return
    values = differences(won, lost, same)
    group = np.arange(len(values)) % groups
    one, other = gain(values, group), gain(-values, group)
    assert one.p == pytest.approx(other.p)
    found, mirrored = one.interval, other.interval
    assert -1 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert found["low"] < found["high"]
    assert [found["low"], found["high"]] == pytest.approx([-mirrored["high"], -mirrored["low"]], abs=2e-6)
    assert one.exceeds(found["low"] - 0.02) or found["low"] <= -0.98


def test_tangos_interval_keeps_a_width_where_the_models_hardly_differ():
    none, one = (gain(differences(0, lost, 44 - lost), np.arange(44)).interval for lost in (0, 1))
    # With no pair that differs the ends are z² / (n + z²).
    assert none["high"] == pytest.approx(1.959964**2 / (44 + 1.959964**2), abs=1e-4)
    assert none["low"] == pytest.approx(-none["high"])
    assert one["low"] == pytest.approx(-0.118, abs=5e-4)  # Tango (1998): -11.8 %


def test_scenes_in_which_all_images_agree_count_as_one_image_each():
    values = differences(3, 1, 26).repeat(10)
    scenes = gain(values, np.arange(30).repeat(10))
    assert scenes.size.images == pytest.approx(30, rel=0.1) and scenes.size.groups == 30
    assert scenes.p == pytest.approx(gain(differences(3, 1, 26), np.arange(30)).p)


def test_twice_the_images_multiply_the_score_by_the_square_root_of_two():
    one = gain(differences(9, 4, 80), np.arange(93))
    two = gain(differences(18, 8, 160), np.arange(186))
    assert np.sqrt(2) * one.score(-0.04) == pytest.approx(two.score(-0.04))


def test_equal_weights_change_nothing_but_the_computation_of_p():
    values, groups = differences(8, 2, 50), np.arange(60) // 2
    plain, weighted = gain(values, groups), gain(values, groups, np.full(60, 1 / 60))
    assert weighted.interval == pytest.approx(plain.interval)
    assert weighted.p == pytest.approx(plain.p, abs=0.02)  # few groups differ: all sign flips are tried
