"""The winner is the model with the higher validation accuracy; ties go to the lower log loss, then to the head."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from rootstock.evaluation import metrics
from rootstock.evaluation.model_selection import MODELS, choose
from rootstock.training import calibration


def logits(*right: float) -> np.ndarray:
    """Logits of images of class 0 of two, by the margin of the correct class."""
    return np.array([[margin, 0.0] for margin in right], np.float32)


def measured(labels: np.ndarray | None = None, **logits: np.ndarray) -> dict:
    """Figures of models with these logits; all images are of class 0 if no labels are given."""
    n, k = logits["head"].shape
    labels = np.zeros(n, np.int64) if labels is None else labels
    given = np.full(n, "field"), [f"class {index}" for index in range(k)]
    return {name: metrics.score(labels, calibration.probabilities(own), *given) for name, own in logits.items()}


def test_the_model_with_the_higher_validation_accuracy_wins():
    choice = choose(measured(head=logits(1, 1, 1, -1), finetuned=logits(0.1, 0.1, 0.1, 0.1)))
    assert choice.winner == "finetuned"
    assert choice.why == "The fine-tuned network won: validation accuracy 100% vs 75.0% (4 images)."


def test_the_lower_log_loss_wins_among_models_of_equal_accuracy():
    choice = choose(measured(head=logits(1, 1, 1, -1), finetuned=logits(2, 2, 2, -1)))
    assert choice.winner == "finetuned"
    assert choice.why == (
        "The fine-tuned network won: validation accuracy 75.0% vs 75.0% (4 images), log loss 0.424 vs 0.563."
    )


def test_the_head_wins_among_equal_models_as_it_is_simpler():
    choice = choose(measured(head=logits(1, 2, 3, 4), finetuned=logits(1, 2, 3, 4)))
    assert choice.winner == "head" and choice.why.endswith(", equal log loss (0.127); the simpler model wins a tie.")


@given(st.floats(-1e-4, 1e-4))
def test_models_that_differ_only_by_rounding_are_a_tie(much):
    assert choose(measured(head=logits(1, 2, 3, -4), finetuned=logits(1, 2, 3, -4 + much))).winner == "head"


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(2, 5))
def test_no_other_model_is_better_on_validation_than_the_winner(seed, n, k):
    rng = np.random.default_rng(seed)
    drawn = {name: rng.normal(size=(n, k)).astype(np.float32) for name in MODELS}
    scores = measured(labels=rng.integers(0, k, n), **drawn)
    figures = {name: (own["accuracy"]["value"], -own["log_loss"]["value"]) for name, own in scores.items()}
    won, best = figures[choose(scores).winner], max(figures.values())
    assert won[0] == best[0] and won[1] == pytest.approx(best[1], abs=1e-3)
