"""A path of fits reports its passes, and estimates how many are to come by how many there were."""

from hypothesis import given, strategies as st

from rootstock.system.progress import Tally
from rootstock.training.pass_progress import PassProgress, expected


@given(passes=st.lists(st.integers(1, 200), min_size=1, max_size=9), kept=st.integers(0, 9))
def test_there_are_never_fewer_than_are_done_and_in_the_end_none_is_left(passes, kept):
    tally = Tally("train_head", expected(len(passes), 300), "passes")
    progress = PassProgress(tally.add, len(passes), 300)
    for number, count in enumerate(passes):
        is_kept = number < kept  # an earlier run has fitted this strength
        for _ in range(0 if is_kept else count):
            progress.one(is_kept=False)
            assert tally.done <= tally.total
        progress.strength(is_kept=is_kept)
        assert tally.done <= tally.total
    assert tally.done == tally.total == sum(passes[kept:])


def test_after_the_first_strengths_the_rest_are_expected_to_take_as_long():
    tally = Tally("train_head", expected(8, 300), "passes")
    progress = PassProgress(tally.add, 8, 300)
    for _ in range(2):
        for _ in range(12):
            progress.one(is_kept=False)
        progress.strength(is_kept=False)
    assert (tally.done, tally.total) == (24, 8 * 12)


def test_passes_of_an_interrupted_run_are_in_no_rate():
    tally = Tally("train_head", expected(1, 300), "passes")
    PassProgress(tally.add, 1, 300).one(is_kept=True)
    assert (tally.done, tally.skipped) == (1, 1)


def test_a_few_iterations_are_a_few_passes():
    assert expected(2, 10) == 22
