"""The principal axes of a training set: standardised, uncorrelated, with a floor under the deviations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from rootstock.training import principal_axes
from rootstock.training.principal_axes import find_principal_axes, mean_and_variance
from tests.simulated_features import Chunks, simulated


@given(n=st.integers(3, 60), d=st.integers(2, 30), chunk=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_coordinates_are_uncorrelated_with_the_variances_and_keep_all_distances(n, d, chunk, seed):
    whole = simulated(n, d=d, seed=seed)
    axes = find_principal_axes(Chunks(whole.x, whole.labels, chunk))
    z = axes.rotate(torch.from_numpy(whole.x)).double().numpy()
    assert z.shape == (n, len(axes.variances)) and z.shape[1] <= (d if n >= d else n - 1)
    np.testing.assert_allclose(z.T @ z / n, np.diag(axes.variances.numpy()), atol=1e-4)
    x = whole.x.astype(np.float64)
    deviation = x.std(0)
    floored = np.maximum(deviation, principal_axes.DEVIATION_FLOOR * np.sqrt((deviation**2).mean()))
    standardised = (x - x.mean(0)) / floored
    np.testing.assert_allclose(z @ z.T, standardised @ standardised.T, atol=1e-3 * d)


@given(
    n=st.integers(1, 200),
    chunk=st.integers(1, 70),
    far=st.sampled_from([0.0, 1.0, 1e3]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_mean_and_variance_in_one_pass_are_exact_however_far_from_zero_and_in_what_order_features_are(
    n, chunk, far, seed
):
    rng = np.random.default_rng(seed)
    x = (far + np.sort(rng.normal(size=(n, 5)), axis=0)).astype(np.float32)
    counts = rng.uniform(0.1, 5, (n, 1)).astype(np.float32)
    for weights in (None, counts):
        parts = (  # of which the first has no image
            (
                torch.from_numpy(x[max(i, 0) : i + chunk]),
                None if weights is None else torch.from_numpy(weights[max(i, 0) : i + chunk]),
            )
            for i in range(-chunk, n, chunk)
        )
        mean, variance = mean_and_variance(parts)
        exact = np.average(x.astype(np.float64), axis=0, weights=None if weights is None else weights[:, 0])
        np.testing.assert_allclose(mean, exact, rtol=1e-7, atol=1e-6)
        squares = (x.astype(np.float64) - exact) ** 2
        spread = np.average(squares, axis=0, weights=None if weights is None else weights[:, 0])
        np.testing.assert_allclose(variance, spread, rtol=1e-5, atol=1e-12)


def test_a_constant_feature_has_no_coordinate():
    train = simulated(100)
    for column, value in ((0, 0.0), (3, 12345.678), (5, -1e-9)):
        train.x[:, column] = value
    axes = find_principal_axes(train)
    assert (axes.projection[[0, 3, 5]] == 0).all() and (axes.projection[[1, 2, 4, 6, 7]] != 0).any(1).all()


def test_a_nearly_constant_feature_is_not_scaled_up_to_the_others():
    train = simulated(100)
    train.x[:, 2] *= 1e-4
    deviation = train.x.astype(np.float64).std(0)
    floor = principal_axes.DEVIATION_FLOOR * np.sqrt((deviation**2).mean())
    scales = 1 / np.linalg.norm(
        find_principal_axes(train).projection.numpy(), axis=1
    )  # rows of a rotation have length 1
    np.testing.assert_allclose(scales, np.maximum(deviation, floor), rtol=1e-5)
    assert scales[2] == pytest.approx(floor) and floor > 100 * deviation[2]
