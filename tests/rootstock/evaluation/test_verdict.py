"""The verdict says in words how good the winner is, compared to what, and whether it may be used."""

import numpy as np
import pandas as pd
import pytest

from rootstock.evaluation.metrics import score
from rootstock.evaluation.verdict import compared, describe_few, describe_few_of_classes, usable

CLASSES = ["ants", "bees"]


def measured(
    right: float, images: int = 400, of_bees: float | None = None, share_of_ants: float = 0.5, groups: int = 0
) -> dict:
    labels = (np.arange(images) >= share_of_ants * images).astype(np.int64)
    place = np.concatenate([np.linspace(0, 1, count, endpoint=False) for count in np.bincount(labels, minlength=2)])
    answers = np.where(place < np.where(labels, right if of_bees is None else of_bees, right), labels, 1 - labels)
    of = np.arange(images) % (groups or images)
    return score(labels, 0.9 * np.eye(2)[answers] + 0.05, np.full(images, "field"), CLASSES, groups=of)


def test_the_accuracy_is_compared_to_guessing_and_to_the_other_model():
    assert compared(measured(0.9, share_of_ants=0.75), "The head won.") == (
        "Always answering ants would be right for 75.0%. The head won."
    )


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (measured(0.95), "Yes, for images like these, where 3.3 to 7.6 wrong answers in 100 are acceptable."),
        (measured(0.5), "No: it is not shown to be better than always answering ants."),
        (measured(0.85, share_of_ants=0.9), "No: it is not shown to be better than always answering ants."),
        (measured(1.0, images=60), "Too early to say: 60 test images are too few to rely on."),
    ],
)
def test_whether_it_may_be_used_follows_from_the_interval(figures, said):
    assert usable(figures).startswith(said)


@pytest.mark.parametrize(
    ("images", "groups", "said"),
    [
        (220, 12, "Too early to say: 220 test images in 12 groups are too few groups to rely on."),
        (60, 12, "Too early to say: 60 test images in 12 groups are too few to rely on."),
        (1, 1, "Too early to say: 1 test image is too few to rely on."),
        (6, 1, "Too early to say: 6 test images in 1 group are too few to rely on."),
    ],
)
def test_where_groups_are_too_few_it_says_so(images, groups, said):
    assert usable(measured(1.0, images, groups=groups)) == said


def test_few_images_and_few_groups_make_figures_rough():
    assert describe_few(measured(0.9), "test") == ""
    assert describe_few(measured(0.9, 60, groups=12), "test") == (
        "There are only 60 test images: figures on them are rough."
    )
    assert describe_few(measured(1.0, 1), "test") == "There is only 1 test image: figures on it are rough."
    assert describe_few(measured(0.9, 220, groups=12), "validation") == (
        "There are 220 validation images in 12 groups, too few groups for intervals: figures on them are rough."
    )
    assert describe_few(measured(0.9, 220, groups=55), "test") == (
        "There are only 220 test images in 55 groups: figures on them are rough."
    )


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"ants": (30, 30), "bees": (400, 200)}, ""),
        (
            {"ants": (29, 29), "bees": (8, 8), "wasps": (30, 30)},
            "Fewer than 30 test images: bees (8), ants (29). Their figures are rough.",
        ),
        (
            {"ants": (1200, 29), "bees": (8, 8), "wasps": (60, 4)},
            "Fewer than 30 groups of test images: wasps (60 in 4 groups), bees (8), ants (1,200 in 29 groups). "
            "Their figures are rough.",
        ),
        (
            dict.fromkeys("abcdefg", (0, 0)),
            "Fewer than 30 test images: a (0), b (0), c (0), d (0), e (0) and 2 more. Their figures are rough.",
        ),
    ],
)
def test_classes_of_few_images_or_groups_are_named_fewest_first(counts, said):
    table = pd.DataFrame.from_dict(counts, orient="index", columns=["size", "nunique"])
    assert describe_few_of_classes(table) == said


def test_classes_that_are_shown_to_be_missed_more_often_are_named():
    assert usable(measured(1.0, of_bees=0.8)).endswith("Less so for bees: more of their images are missed.")
    assert "Less so" not in usable(measured(0.95))
