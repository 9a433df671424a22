"""Logistic regression along a path of L2 strengths: scikit-learn's solutions, kept in memory or streamed."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import check_grad
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from rootstock.config import params
from rootstock.features import reader
from rootstock.features.reader import Features
from rootstock.training import head, heads, logistic
from rootstock.training.class_weights import class_weights
from rootstock.training.head import Head
from rootstock.training.log_loss import LogLoss, Solution
from rootstock.training.logistic import fit_logistic_path
from rootstock.training.principal_axes import find_principal_axes
from tests.simulated_features import Chunks, simulated
from tests.small_dataset import CLASSES, small_dataset, small_features


def fit(train: Chunks, val: Chunks | None = None, l2: tuple[float, ...] = (1.0,), k: int = 3) -> Head:
    return fit_logistic_path(train, val or train, [f"class {c}" for c in range(k)], l2)


def reference(train: Chunks, l2: float) -> tuple[StandardScaler, LogisticRegression]:
    scaler = StandardScaler().fit(train.x.astype(np.float64))
    model = LogisticRegression(C=1 / l2, max_iter=10_000, tol=1e-8)
    return scaler, model.fit(scaler.transform(train.x.astype(np.float64)), train.labels)


@pytest.mark.parametrize("l2", [100.0, 1.0, 0.1])
def test_the_head_is_scikit_learns_logistic_regression_on_standardised_features(l2):
    train, test = simulated(300), simulated(200, seed=1)
    fitted = fit(train, l2=(l2,))
    scaler, model = reference(train, l2)
    # in terms of standardised features, and up to what all classes have in common
    ours = fitted.weight * scaler.scale_
    np.testing.assert_allclose(ours - ours.mean(0), model.coef_ - model.coef_.mean(0), atol=5e-3)
    expected = model.predict_proba(scaler.transform(test.x.astype(np.float64)))
    got = softmax(fitted.logits(test.x).astype(np.float64), axis=1)
    np.testing.assert_allclose(got, expected, atol=5e-3)
    assert log_loss(test.labels, got) == pytest.approx(log_loss(test.labels, expected), rel=2e-3)


@pytest.mark.parametrize("kept_bytes", [0, reader.KEPT_BYTES])
def test_with_balanced_class_weights_the_head_is_scikit_learns_too(kept_bytes, monkeypatch):
    monkeypatch.setattr(reader, "KEPT_BYTES", kept_bytes)
    whole = simulated(600)
    kept = (whole.labels != 2) | (np.arange(600) % 10 == 0)  # one class is rare
    train = Chunks(whole.x[kept], whole.labels[kept])
    weights = class_weights(train.labels, 3, "balanced")
    ours = fit_logistic_path(train, train, ["a", "b", "c"], (1.0,), weights=weights)
    x = train.x.astype(np.float64)
    scaler = StandardScaler().fit(x, sample_weight=weights[train.labels])
    model = LogisticRegression(C=1, class_weight="balanced", max_iter=10_000, tol=1e-8)
    expected = model.fit(scaler.transform(x), train.labels).predict_proba(scaler.transform(x))
    np.testing.assert_allclose(softmax(ours.logits(train.x).astype(np.float64), axis=1), expected, atol=5e-3)


@pytest.mark.parametrize("kept_bytes", [0, reader.KEPT_BYTES])
@given(
    n=st.integers(5, 30),
    k=st.integers(2, 4),
    d=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    class_weight=st.sampled_from(["none", "balanced"]),
)
@settings(max_examples=40, deadline=None)
def test_the_gradient_is_that_of_the_log_loss(kept_bytes, n, k, d, seed, class_weight):
    train = simulated(n, k, d, seed)
    weights = class_weights(train.labels, k, class_weight)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(reader, "KEPT_BYTES", kept_bytes)
        loss = LogLoss(train, find_principal_axes(train), k, torch.device("cpu"), pool, weights)

        def evaluated(point):
            return loss(Solution(torch.from_numpy(point[k:]).view(loss.shape), torch.from_numpy(point[:k])))

        def gradient(point):
            found = evaluated(point).gradient
            return torch.cat([found.bias, found.weight.ravel()]).numpy()

        point = np.random.default_rng(seed).normal(0, 0.5, k + k * loss.shape[1])
        # Products are in float32: a step that is not far above its precision would measure that.
        error = check_grad(lambda point: evaluated(point).loss, gradient, point, epsilon=1e-3)
        assert error < 1e-2 * (1 + np.linalg.norm(gradient(point)))


@given(
    n=st.integers(5, 40),
    k=st.integers(2, 5),
    d=st.integers(1, 8),
    scale=st.sampled_from([0.1, 1.0, 100.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_loss_and_curvature_are_exact_even_where_the_head_is_certain(n, k, d, scale, seed):
    train = simulated(n, k, d, seed)
    axes = find_principal_axes(train)
    rng = np.random.default_rng(seed)
    with ThreadPoolExecutor(1) as pool:
        loss = LogLoss(train, axes, k, torch.device("cpu"), pool)
        weight = torch.from_numpy(rng.normal(0, scale, loss.shape))
        found = loss(Solution(weight, torch.zeros(k, dtype=torch.float64)))
    logits = axes.rotate(torch.from_numpy(train.x)) @ weight.float().T
    log_p = torch.log_softmax(logits.double(), 1)
    p = log_p.exp()
    expected = -log_p.gather(1, torch.from_numpy(train.labels)[:, None]).mean()
    assert found.loss == pytest.approx(float(expected), rel=1e-4)
    assert found.curvature == pytest.approx(float((p * (1 - p)).mean()), rel=1e-3, abs=1e-6)


def test_the_l2_strength_is_chosen_by_the_log_loss_on_validation():
    train, val = simulated(40, d=30, apart=0.3), simulated(300, d=30, seed=1, apart=0.3)
    fitted = fit(train, val, l2=(0.01, 1000.0, 10.0, 10.0, 1000.0))  # each once
    assert [entry["l2"] for entry in fitted.path] == [1000.0, 10.0, 0.01]  # from strong to weak
    best = min(fitted.path, key=lambda entry: entry["val_log_loss"])
    assert fitted.l2 == best["l2"] == 10.0
    assert best["val_log_loss"] < min(fitted.path[0]["val_log_loss"], fitted.path[2]["val_log_loss"])
    loss, accuracy = head.evaluate(fitted, val)
    assert (loss, accuracy) == (best["val_log_loss"], best["val_accuracy"])
    probabilities = softmax(fitted.logits(val.x).astype(np.float64), axis=1)
    assert loss == pytest.approx(log_loss(val.labels, probabilities), abs=1e-6)
    assert accuracy == (probabilities.argmax(1) == val.labels).mean()


def test_a_path_of_l2_strengths_reaches_the_solution_of_each_alone():
    train, val = simulated(200), simulated(100, seed=1)
    path = fit(train, val, l2=(100.0, 10.0, 1.0)).path
    for entry in path:
        alone = fit(train, val, l2=(entry["l2"],)).path[0]
        assert entry["val_log_loss"] == pytest.approx(alone["val_log_loss"], abs=1e-4)


def test_a_path_of_eight_strengths_takes_some_hundred_passes_where_lbfgs_alone_takes_a_thousand(monkeypatch):
    train, passes = simulated(2000, k=10, d=200, apart=0.2), []
    call = LogLoss.__call__
    monkeypatch.setattr(LogLoss, "__call__", lambda *args: passes.append(args) or call(*args))
    fit(train, l2=(1000.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1), k=10)
    assert 8 < len(passes) < 200


def test_a_constant_feature_has_no_weight():
    train = simulated(100)
    for column, value in ((0, 0.0), (3, 12345.678), (5, -1e-9)):
        train.x[:, column] = value
    fitted = fit(train)
    assert (fitted.weight[:, [0, 3, 5]] == 0).all() and (fitted.weight[:, [1, 2, 4, 6, 7]] != 0).any(0).all()
    assert np.isfinite(fitted.weight).all() and np.isfinite(fitted.bias).all()


@given(scale=st.floats(-30, 15))
@settings(max_examples=10, deadline=None)
def test_the_scale_of_the_features_does_not_matter(scale):
    """Random weights give features of 1e-9: they tell images apart as well as larger ones do."""
    train = simulated(100)
    scaled = Chunks((train.x.astype(np.float64) * 10.0**scale).astype(np.float32), train.labels)
    one, other = (softmax(fit(chunks).logits(chunks.x), axis=1) for chunks in (train, scaled))
    np.testing.assert_allclose(one, other, atol=5e-3)


@pytest.mark.parametrize("size", [1, 13, 1000])
def test_the_chunk_size_does_not_change_the_head(size):
    train = simulated(150)
    whole, cut = fit(Chunks(train.x, train.labels, 150)), fit(Chunks(train.x, train.labels, size))
    np.testing.assert_allclose(whole.weight, cut.weight, rtol=1e-2, atol=1e-3)


def test_fewer_images_than_features_reach_scikit_learns_solution_too():
    train, test = simulated(40, d=100, apart=0.3), simulated(200, d=100, seed=1, apart=0.3)
    scaler, model = reference(train, 1.0)
    expected = model.predict_proba(scaler.transform(test.x.astype(np.float64)))
    np.testing.assert_allclose(softmax(fit(train).logits(test.x).astype(np.float64), axis=1), expected, atol=2e-2)


def test_the_number_of_cores_does_not_change_the_bytes(monkeypatch):
    train = simulated(5000, k=4, d=20)
    with_two = fit(train, l2=(100.0, 1.0), k=4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = fit(train, l2=(100.0, 1.0), k=4)
    assert with_two.weight.tobytes() == alone.weight.tobytes() and with_two.path == alone.path


def test_streamed_features_give_the_same_head_as_features_kept_in_memory(tmp_path_factory, monkeypatch):
    base = tmp_path_factory.getbasetemp()
    small, folder = small_dataset(base), small_features(base)

    def fitted() -> tuple[Head, Features]:
        train, val = (Features(folder, small.split(split)) for split in ("train", "val"))
        return fit_logistic_path(train, val, CLASSES, (1000.0, 100.0), max_iterations=50), val

    kept, val = fitted()
    monkeypatch.setattr(reader, "KEPT_BYTES", 0)
    streamed, _ = fitted()
    assert kept.l2 == streamed.l2 and kept.path[-1]["iterations"] > 1
    for x, _ in val:
        np.testing.assert_allclose(*(softmax(one.logits(x), axis=1) for one in (kept, streamed)), atol=1e-3)


def test_uninformative_features_give_each_class_its_share_as_probability():
    train = Chunks(np.ones((100, 4), np.float32), np.repeat([0, 1, 2], [50, 30, 20]))
    fitted = fit(train)
    np.testing.assert_allclose(softmax(fitted.logits(train.x[:1]), axis=1), [[0.5, 0.3, 0.2]], atol=1e-3)


# Where the search ends at a limit


def path(*losses: float, converged: tuple[float, ...] = (10.0, 1.0, 0.1)) -> list[dict[str, float]]:
    """Return a path over the strengths 10, 1, 0.1 with these losses."""
    strengths = (10.0, 1.0, 0.1)
    return [
        {"l2": l2, "val_log_loss": loss, "converged": l2 in converged}
        for l2, loss in zip(strengths, losses, strict=True)
    ]


@pytest.mark.parametrize(
    ("losses", "converged", "chosen", "says"),
    [
        ((0.5, 0.3, 0.4), (10.0, 1.0, 0.1), 1.0, None),
        ((0.5, 0.3, 0.4), (1.0,), 1.0, None),  # what was not chosen need not be exact
        ((0.5, 0.3, 0.4), (), 1.0, "no L2 strength has converged within head.max_iterations (7)"),
        ((0.5, 0.3, 0.4), (10.0, 0.1), 1.0, "the chosen L2 strength, 1, has not converged"),
        ((0.3, 0.4, 0.5), (10.0, 1.0, 0.1), 10.0, "try a larger one"),
        ((0.5, 0.4, 0.3), (10.0, 1.0, 0.1), 0.1, "try a smaller one"),
        ((0.5, 0.301, 0.3), (10.0, 1.0, 0.1), 0.1, None),  # as good as its neighbour
    ],
)
def test_only_a_search_that_ends_at_a_limit_causes_a_warning(losses, converged, chosen, says):
    found = logistic.warnings(path(*losses, converged=converged), chosen, 7)
    assert len(found) == (says is not None)
    assert all(says in warning for warning in found)


def test_a_head_that_has_not_converged_says_so_in_the_log_and_in_its_description(tmp_path, caplog):
    def fit_within(iterations: int) -> head.Head:
        recipe = params.Head(l2=(1.0, 0.1), max_iterations=iterations)
        train, val = simulated(60), simulated(60, seed=1)
        return heads.fit(train, val, ["a", "b", "c"], recipe, np.arange(60), "train_head").head

    head.save(fit_within(1), tmp_path / "head", {})
    assert "head.max_iterations" in caplog.text
    assert "converged" in " ".join(head.load(tmp_path / "head").warnings)
    caplog.clear()
    fit_within(300)
    assert "head.max_iterations" not in caplog.text
