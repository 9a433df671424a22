"""Pictures of what fine-tuning brought."""

import io

import numpy as np
import pytest
from PIL import Image

from rootstock.evaluation import training_plots
from rootstock.training.averaging import Average, describe
from rootstock.training.checkpoints import Epoch, RatePoint
from rootstock.training.course import Course

HISTORY = [
    Epoch(0, "last_block", 0, 0.9, 0.8, 0.7),
    Epoch(1, "all", 0, 0.7, 0.6, 0.8),
    Epoch(1, "all", 1, 0.5, 0.5, 0.85),
]
AVERAGES = [
    Average("soup", 1, 1.0, 0.5, 0.85),
    Average("soup", 2, 1.0, 0.45, 0.86),
    Average("interpolation", 2, 0.0, 0.9, 0.6),
    Average("interpolation", 2, 0.5, 0.4, 0.88, chosen=True),
]


def test_accuracy_against_seconds_is_drawn_where_the_seconds_are_those_of_the_epochs():
    pictures = training_plots.pictures(Course(HISTORY), [2.0, 5.0, 5.0], 0.6)
    assert set(pictures) == {"cost", "cost_dark"}
    for drawn in pictures.values():
        assert np.asarray(Image.open(io.BytesIO(drawn)).convert("L")).std() > 5
    assert training_plots.pictures(Course(HISTORY), [2.0, 5.0], 0.6) == {}  # of another run
    assert training_plots.pictures(Course(), [], 0.6) == {}  # nothing was fine-tuned


def test_range_tests_of_learning_rates_are_drawn():
    points = [RatePoint(stage, 10.0**power, 1.0 + power) for stage in (0, 1) for power in (-3, -2)]
    assert set(training_plots.pictures(Course(HISTORY, rates=points), [], 0.6)) == {"rates", "rates_dark"}


def test_a_curve_from_the_linear_probe_to_the_fine_tuned_weights_is_drawn_where_it_was_measured():
    assert set(training_plots.pictures(Course(HISTORY, AVERAGES), [], 0.6)) == {"averages", "averages_dark"}
    assert training_plots.pictures(Course(HISTORY, AVERAGES[:2]), [], 0.6) == {}  # a soup alone has no curve


@pytest.mark.parametrize("chosen", range(4))
def test_every_average_can_be_the_chosen_one(chosen):
    averages = [
        Average(one.kind, one.epochs, one.share, one.val_loss, one.val_accuracy, chosen=at == chosen)
        for at, one in enumerate(AVERAGES)
    ]
    assert len(training_plots.pictures(Course(HISTORY, averages), [], 0.6)) == 2


def test_a_sentence_says_which_weights_were_kept():
    assert describe(AVERAGES) == (
        "3 averages of weights were tried on validation. Kept: 50% of the way from the linear probe to the mean of 2 "
        "epochs, accuracy 88.0%, log loss 0.400 (the best epoch: 85.0%, 0.500)."
    )
    assert describe([]) == ""
