"""Words with numbers."""

import pytest

from rootstock.system import phrases


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (1200.4, "1,200 images/s"),
        (9.96, "10.0 images/s"),
        (0.1, "0.1 images/s"),
        (0.043, "23 s each"),
        (0, "0.0 images/s"),
    ],
)
def test_a_rate_is_said_by_the_second_and_a_very_slow_one_by_the_piece(rate, said):
    assert phrases.per_second(rate, "images") == said


def test_of_many_names_the_first_are_listed():
    assert phrases.listed(["a", "b", "c"], 3) == "a, b, c"
    assert phrases.listed([str(n) for n in range(1002)], 2) == "0, 1 and 1,000 more"
