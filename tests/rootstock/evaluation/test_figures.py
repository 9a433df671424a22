"""Figures as they are written for people."""

import pytest

from rootstock.evaluation.figures import count_images, percent


@pytest.mark.parametrize(
    ("share", "words"), [(1, "100%"), (0.99999, "99.9%"), (0.9876, "98.8%"), (0.00001, "0.1%"), (0, "0%")]
)
def test_only_one_is_shown_as_100_percent_and_only_zero_as_0_percent(share, words):
    assert percent(share) == words


@pytest.mark.parametrize(
    ("images", "groups", "words"),
    [
        (6, 1, "6 test images in 1 group"),
        (2000, 1000, "2,000 test images in 1,000 groups"),
        (2, 2, "2 test images"),
        (1, 1, "1 test image"),
        (0, 0, "0 test images"),
    ],
)
def test_images_are_counted_with_their_groups_where_these_are_fewer(images, groups, words):
    assert count_images(images, groups, "test image") == words
