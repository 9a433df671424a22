"""Temperature scaling: it finds the temperature that calibrates a model, within bounds, and changes no prediction."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.special import log_softmax

from rootstock.training import calibration
from rootstock.training.calibration import fit_temperature
from tests.simulated_predictions import simulated


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_probabilities_sum_to_one_and_a_temperature_keeps_their_order(seed, temperature):
    logits = np.random.default_rng(seed).normal(size=(5, 7)).astype(np.float32) * 30
    probabilities = calibration.probabilities(logits, temperature)
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (probabilities.argmax(axis=1) == logits.argmax(axis=1)).all()


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 5.0])
def test_temperature_scaling_recovers_the_true_temperature(sharpness):
    labels, logits, _ = simulated(20_000, 5)
    assert fit_temperature(sharpness * logits, labels) == pytest.approx(sharpness, rel=0.05)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_temperature_scaling_stays_in_bounds_is_repeatable_and_never_increases_the_loss(seed, n):
    draw = np.random.default_rng(seed)
    logits, labels = draw.normal(size=(n, 4)).astype(np.float32), draw.integers(0, 4, n)
    temperature = fit_temperature(logits, labels)
    assert 0.05 <= temperature <= 20 and temperature == fit_temperature(logits, labels)

    targets = np.full((n, 4), 1 / (n + 2) / 3)  # Platt (1999): one in n + 2 goes to another class
    targets[np.arange(n), labels] = 1 - 1 / (n + 2)

    def loss(at: float) -> float:
        return -(targets * log_softmax(logits.astype(np.float64) / at, axis=1)).sum(axis=1).mean()

    assert all(loss(temperature) <= loss(other) + 1e-4 for other in (0.06, 0.5, 1.0, 3.0, 19.0))


def test_a_model_without_a_mistake_on_validation_gets_finite_confidence():
    labels, logits, _ = simulated(300, 5)
    logits[np.arange(300), labels] = logits.max(axis=1) + 0.5
    confidence = calibration.probabilities(logits, fit_temperature(logits, labels))[np.arange(300), labels]
    assert 0.97 < confidence.mean() < 1 - 0.5 / 302


def test_fitting_a_temperature_to_no_images_is_an_error():
    with pytest.raises(ValueError, match="expected logits"):
        fit_temperature(np.zeros((0, 3), dtype=np.float32), np.zeros(0, dtype=np.int64))
