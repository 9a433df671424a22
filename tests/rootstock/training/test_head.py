"""The linear head: scikit-learn's logistic regression, along a path of strengths, in bounded memory."""

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from scipy.optimize import check_grad
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from rootstock.features import reader
from rootstock.features.reader import Features
from rootstock.system.errors import SourceError
from rootstock.training import head
from rootstock.training.head import Head, fit_logistic_path
from tests.small_dataset import CLASSES, small_dataset, small_features


class Chunks:
    """In-memory features with the interface of `Features`."""

    def __init__(self, x: NDArray[np.floating], labels: NDArray[np.int64], size: int = 64) -> None:
        self.x, self.labels, self.size, self.width = x, labels, size, x.shape[1]

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self):
        for start in range(0, len(self.x), self.size):
            yield self.x[start : start + self.size], self.labels[start : start + self.size]


def simulated(n: int, k: int = 3, d: int = 8, seed: int = 0, apart: float = 1.0) -> Chunks:
    """Classes that overlap, in features of different scales and means."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    centres = np.random.default_rng(99).normal(0, apart, (k, d))
    x = (centres[labels] + rng.normal(0, 1, (n, d))) * np.linspace(0.5, 2, d) + np.linspace(-5, 5, d)
    return Chunks(x.astype(np.float32), labels)


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
    np.testing.assert_allclose(got, expected, atol=2e-3)
    assert log_loss(test.labels, got) == pytest.approx(log_loss(test.labels, expected), abs=1e-4)


@given(
    n=st.integers(5, 30),
    k=st.integers(2, 4),
    d=st.integers(1, 6),
    l2=st.floats(0.01, 100),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_the_gradient_is_that_of_the_objective(n, k, d, l2, seed):
    train = simulated(n, k, d, seed)
    mean, inverse_deviation = head._standardisation(train)
    point = np.random.default_rng(seed).normal(0, 0.5, k * (d + 1))

    def loss(solution):
        return head._objective(solution, train, mean, inverse_deviation, l2)[0]

    def gradient(solution):
        return head._objective(solution, train, mean, inverse_deviation, l2)[1]

    # Products are in float32: a step that is not far above its precision would measure that.
    assert check_grad(loss, gradient, point, epsilon=1e-3) < 1e-2 * (1 + np.linalg.norm(gradient(point))) * (1 + l2 / n)


def test_the_l2_strength_is_chosen_by_the_log_loss_on_validation():
    train, val = simulated(40, d=30, apart=0.3), simulated(300, d=30, seed=1, apart=0.3)
    fitted = fit(train, val, l2=(0.01, 1000.0, 10.0))
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


def test_a_nearly_constant_feature_is_not_scaled_up_to_the_others():
    train = simulated(100)
    train.x[:, 2] *= 1e-4
    _, inverse_deviation = head._standardisation(train)
    deviation = train.x.astype(np.float64).std(0)
    floor = head.DEVIATION_FLOOR * np.sqrt((deviation**2).mean())
    np.testing.assert_allclose(1 / inverse_deviation, np.maximum(deviation, floor), rtol=1e-9)
    assert 1 / inverse_deviation[2] == pytest.approx(floor) and floor > 100 * deviation[2]


def test_standardisation_is_folded_into_the_weights():
    train = simulated(100)
    mean, inverse_deviation = head._standardisation(train)
    np.testing.assert_allclose(mean, train.x.mean(0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(1 / inverse_deviation, train.x.astype(np.float64).std(0), rtol=1e-9)
    solution = np.random.default_rng(0).normal(size=(3, 9))
    weight, bias = head._fold(solution.ravel(), mean, inverse_deviation)
    x = train.x.astype(np.float64)
    np.testing.assert_allclose(
        x @ weight.T + bias, (x - mean) * inverse_deviation @ solution[:, :-1].T + solution[:, -1], atol=1e-9
    )


@pytest.mark.parametrize("size", [1, 13, 1000])
def test_the_chunk_size_does_not_change_the_head(size):
    train = simulated(150)
    whole, cut = fit(Chunks(train.x, train.labels, 150)), fit(Chunks(train.x, train.labels, size))
    np.testing.assert_allclose(whole.weight, cut.weight, rtol=1e-2, atol=1e-3)


def test_streamed_features_give_the_same_bytes_as_features_kept_in_memory(tmp_path_factory, monkeypatch):
    base = tmp_path_factory.getbasetemp()
    small, folder = small_dataset(base), small_features(base)

    def fitted() -> Head:
        train, val = (Features(folder, small.split(split)) for split in ("train", "val"))
        return fit_logistic_path(train, val, CLASSES, (1000.0, 100.0), max_iterations=20)

    kept = fitted()
    monkeypatch.setattr(reader, "KEPT_BYTES", 0)
    streamed = fitted()
    assert kept.weight.tobytes() == streamed.weight.tobytes() and kept.bias.tobytes() == streamed.bias.tobytes()
    assert kept.path == streamed.path and kept.path[-1]["iterations"] > 1


@pytest.mark.parametrize("missing", [0, 2])
def test_a_class_without_training_images_is_an_error_that_names_it(missing):
    whole = simulated(60)
    there = whole.labels != missing
    train = Chunks(whole.x[there], whole.labels[there])
    with pytest.raises(
        SourceError, match=f"no image of 'class {missing}' is in the train split; expected images of every"
    ):
        fit(train, whole)


def test_uninformative_features_give_each_class_its_share_as_probability():
    train = Chunks(np.ones((100, 4), np.float32), np.repeat([0, 1, 2], [50, 30, 20]))
    fitted = fit(train)
    np.testing.assert_allclose(softmax(fitted.logits(train.x[:1]), axis=1), [[0.5, 0.3, 0.2]], atol=1e-3)


def test_a_head_is_read_as_it_was_written(tmp_path):
    fitted = fit_logistic_path(simulated(50), simulated(50, seed=1), ["Äpfel", "b", "c"], (1.0, 0.1))
    head.save(fitted, tmp_path / "head", {"images": {"train": 50}})
    read = head.load(tmp_path / "head")
    assert (read.classes, read.l2, read.path) == (fitted.classes, fitted.l2, fitted.path)
    assert np.array_equal(read.weight, fitted.weight) and np.array_equal(read.bias, fitted.bias)
    assert read.weight.dtype == read.bias.dtype == np.float32
    described = json.loads((tmp_path / "head" / head.DESCRIPTION).read_text(encoding="utf-8"))
    assert list(described) == ["classes", "l2", "path", "layer", "pooling", "warnings", "digest", "images"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "head").iterdir()}
    again = fit_logistic_path(simulated(50), simulated(50, seed=1), ["Äpfel", "b", "c"], (1.0, 0.1))
    head.save(again, tmp_path / "head", {"images": {"train": 50}})
    assert {path.name: path.read_bytes() for path in (tmp_path / "head").iterdir()} == before


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
    found = head.warnings(path(*losses, converged=converged), chosen, 7)
    assert len(found) == (says is not None)
    assert all(says in warning for warning in found)


def test_a_head_that_has_not_converged_says_so_in_the_log_and_in_its_description(tmp_path, caplog):
    fitted = fit_logistic_path(simulated(60), simulated(60, seed=1), ["a", "b", "c"], (1.0, 0.1), max_iterations=1)
    assert "head.max_iterations" in caplog.text
    head.save(fitted, tmp_path / "head", {})
    assert "converged" in " ".join(head.load(tmp_path / "head").warnings)
    caplog.clear()
    fit_logistic_path(simulated(60), simulated(60, seed=1), ["a", "b", "c"], (1.0, 0.1))
    assert "head.max_iterations" not in caplog.text
