"""Figures as they are written for people."""

import pytest

from rootstock.evaluation.figures import percent


@pytest.mark.parametrize(
    ("share", "words"), [(1, "100%"), (0.99999, "99.9%"), (0.9876, "98.8%"), (0.00001, "0.1%"), (0, "0%")]
)
def test_only_one_is_shown_as_100_percent_and_only_zero_as_0_percent(share, words):
    assert percent(share) == words
