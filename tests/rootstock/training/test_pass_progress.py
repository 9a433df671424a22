"""A path of fits reports its passes, and estimates how many are to come by how many there were."""

import pytest
from hypothesis import given, strategies as st

from rootstock.system.progress import Tally
from rootstock.training import logistic
from rootstock.training.logistic import TOLERANCE
from rootstock.training.pass_progress import PassProgress, expected
from tests.simulated_features import simulated


@given(passes=st.lists(st.integers(1, 200), min_size=1, max_size=9), kept=st.integers(0, 9))
def test_there_are_never_fewer_than_are_done_and_in_the_end_none_is_left(passes, kept):
    tally = Tally("train_head", expected(len(passes), 300), "passes")
    progress = PassProgress(tally.add, len(passes), 300, TOLERANCE)
    for number, count in enumerate(passes):
        is_kept = number < kept  # an earlier run has fitted this strength
        for _ in range(0 if is_kept else count):
            progress.one(is_kept=False)
            assert tally.done < tally.total  # it has not converged
        progress.strength(is_kept=is_kept)
        assert tally.done <= tally.total
    assert tally.done == tally.total == sum(passes[kept:])


def test_after_the_first_strengths_the_rest_are_expected_to_take_as_long():
    tally = Tally("train_head", expected(8, 300), "passes")
    progress = PassProgress(tally.add, 8, 300, TOLERANCE)
    for _ in range(2):
        for _ in range(12):
            progress.one(is_kept=False)
        progress.strength(is_kept=False)
    assert (tally.done, tally.total) == (24, 8 * 12)


def test_passes_of_an_interrupted_run_are_in_no_rate():
    tally = Tally("train_head", expected(1, 300), "passes")
    PassProgress(tally.add, 1, 300, TOLERANCE).one(is_kept=True)
    assert (tally.done, tally.skipped) == (1, 1)


def test_a_few_iterations_are_a_few_passes():
    assert expected(2, 10) == 22


def test_the_passes_of_a_fit_whose_objective_falls_geometrically_are_known_halfway():
    tally = Tally("train_head", expected(1, 300), "passes")
    progress = PassProgress(tally.add, 1, 300, TOLERANCE)
    progress.reached(1.0)
    for number in range(1, 60):
        progress.one(is_kept=False)
        progress.reached(0.5 + 0.5 * 0.9**number)
    assert tally.total == 104  # 0.05 * 0.9 ** 103 is less than 1e-6


@pytest.mark.parametrize(("images", "classes", "l2"), [(2000, 20, 0.01), (1000, 10, 0.001)])
def test_the_passes_of_a_real_fit_are_known_to_a_factor_of_two_halfway(images, classes, l2):
    tally, said = Tally("train_head", expected(1, 300), "passes"), []

    def advance(n, *, skip=0, more=0):
        tally.add(n, skip=skip, more=more)
        said.append((tally.done, tally.total))

    train = simulated(images, classes, 16)
    next(logistic.fit_each(train, [f"class {c}" for c in range(classes)], [l2], 300, advance=advance))
    passes, total = said[-1]
    assert passes == total > 20
    halfway = [total for done, total in said if done == passes // 2]
    assert passes / 2 < halfway[-1] < passes * 2
