"""Heads and fine-tuning for images of any number of classes: scikit-learn's solutions, torch's losses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, jaccard_score, log_loss
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.config.params import Regularization, Stage
from rootstock.features import reader
from rootstock.system.errors import ParamsError, SourceError
from rootstock.system.parallel import cores
from rootstock.training import calibration, finetune, head, heads, outcomes, targets, thresholds
from rootstock.training.logistic import fit_logistic_path
from rootstock.training.mixing import Mixing
from rootstock.training.split_images import SplitImages
from tests.shapes import SHAPES
from tests.shapes_dataset import shapes_dataset, shapes_inputs
from tests.simulated_features import Chunks
from tests.small_dataset import classifier_from

NAMES = ["ant", "bee", "cat", "dog"]


def simulated(n: int, d: int = 12, seed: int = 0) -> Chunks:
    """Draw features, and labels of four classes that follow from them with some noise; some images have none."""
    plan, draw = np.random.default_rng(7), np.random.default_rng(seed)
    weight, bias = plan.normal(size=(4, d)), np.array([-1.0, -0.5, 0.0, -3.0])
    x = draw.normal(size=(n, d)).astype(np.float32)
    chances = 1 / (1 + np.exp(-(x @ weight.T + bias)))
    return Chunks(x, draw.random((n, 4)) < chances)


# The head


@pytest.mark.parametrize("kept_bytes", [0, reader.KEPT_BYTES])
@pytest.mark.parametrize("l2", [30.0, 1.0])
def test_the_head_is_scikit_learns_one_regression_for_each_class(l2, kept_bytes, monkeypatch):
    monkeypatch.setattr(reader, "KEPT_BYTES", kept_bytes)
    train, test = simulated(500), simulated(300, seed=1)
    fitted = fit_logistic_path(train, train, NAMES, (l2,))
    scaler = StandardScaler().fit(train.x.astype(np.float64))
    reference = OneVsRestClassifier(LogisticRegression(C=1 / l2, max_iter=10_000, tol=1e-8))
    reference.fit(scaler.transform(train.x.astype(np.float64)), train.labels.astype(int))
    expected = reference.predict_proba(scaler.transform(test.x.astype(np.float64)))
    got = calibration.probabilities(fitted.logits(test.x), multi_label=True)
    np.testing.assert_allclose(got, expected, atol=5e-3)
    assert fitted.multi_label


def test_the_strength_with_the_lowest_log_loss_on_validation_is_kept_and_accuracy_is_the_overlap():
    train, val = simulated(60, 40), simulated(400, 40, seed=1)
    fitted = heads.fit(train, val, NAMES, params.Head(l2=(100.0, 10.0, 1.0, 0.01)), np.arange(400)).head
    losses = {entry["l2"]: entry["val_log_loss"] for entry in fitted.path}
    assert losses[fitted.l2] == min(losses.values()) < max(losses.values())
    logits = fitted.logits(val.x)
    chances = calibration.probabilities(logits, multi_label=True).astype(np.float64)
    assert losses[fitted.l2] == pytest.approx(
        np.mean([log_loss(val.labels[:, c], chances[:, c]) for c in range(4)]), rel=1e-4
    )
    expected = jaccard_score(val.labels, logits > 0, average="samples", zero_division=1)
    assert fitted.val_accuracy == pytest.approx(expected)


def test_a_saved_head_says_that_images_have_any_number_of_classes(tmp_path):
    fitted = fit_logistic_path(simulated(80), simulated(80), NAMES, (1.0,))
    head.save(fitted, tmp_path / "head", {})
    assert head.load(tmp_path / "head").multi_label
    assert '"multi_label": true' in (tmp_path / "head" / "head.json").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "knn"}, "head.kind is knn, but the dataset is multi-label .*; expected logistic or auto"),
        ({"class_weight": "balanced"}, "head.class_weight is balanced, but the dataset is multi-label"),
    ],
)
def test_other_kinds_of_heads_and_class_weights_are_refused_by_name(given, said):
    train = simulated(80)
    with pytest.raises(ParamsError, match=said):
        heads.fit(train, train, NAMES, params.Head(**given), np.arange(80))


def test_a_class_that_no_training_image_has_is_an_error():
    train = simulated(80)
    train.labels[:, 2] = False
    with pytest.raises(SourceError, match="no image of 'cat' is in the train split"):
        heads.fit(train, train, NAMES, params.Head(), np.arange(80))


# Temperature and thresholds


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_temperature_scaling_recovers_the_true_temperature(sharpness):
    draw = np.random.default_rng(0)
    logits = draw.normal(scale=2, size=(20_000, 5)).astype(np.float32)
    labels = draw.random(logits.shape) < 1 / (1 + np.exp(-logits))
    assert calibration.fit_temperature(sharpness * logits, labels) == pytest.approx(sharpness, rel=0.05)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_no_other_threshold_has_a_higher_f1_on_validation(seed, n):
    draw = np.random.default_rng(seed)
    chances, has = draw.integers(0, 12, n).astype(np.float32) / 12, draw.random(n) < 0.4
    chosen = thresholds.best_f1(chances, has)
    if not has.any():
        assert chosen == 0.5
        return
    found = f1_score(has, chances >= chosen)
    assert all(found >= f1_score(has, chances >= other, zero_division=0) for other in np.linspace(0.02, 0.99, 60))


def test_thresholds_of_rare_classes_are_drawn_towards_the_common_one():
    """Simulated: by the mean F1 on new images, better than one half, the common threshold, or each class's own."""
    draw, f1 = np.random.default_rng(0), {name: [] for name in ("half", "common", "own", "chosen")}
    for _ in range(60):
        center, spread, bias = draw.normal(-3, 1, 10), draw.uniform(2, 4, 10), draw.normal(0, 0.5, 10)
        logits = [center + spread * draw.normal(size=(n, 10)) for n in (60, 4000)]
        val, test = [draw.random(z.shape) < 1 / (1 + np.exp(-z)) for z in logits]
        seen, new = (calibration.probabilities(z + bias, multi_label=True) for z in logits)
        common = thresholds.best_f1(seen.ravel(), val.ravel())
        own = [thresholds.best_f1(seen[:, c], val[:, c]) for c in range(10)]
        for name, cuts in {"half": 0.5, "common": common, "own": own, "chosen": thresholds.choose(seen, val)}.items():
            f1[name].append(f1_score(test, new >= np.array(cuts), average="macro", zero_division=0))
    means = {name: np.mean(values) for name, values in f1.items()}
    assert means["chosen"] == max(means.values()) > means["half"] + 0.01


# Fine-tuning


def test_the_loss_is_torchs_of_the_images_that_count_with_smoothed_labels():
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.bool)
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    target = targets.padded(targets.without(targets.of_labels(labels), slice(3, None)), 2)
    counted = targets.counted(target, multi_label=True)
    assert counted.tolist() == [1, 1, 1, 0, 0, 0]
    expected = functional.binary_cross_entropy_with_logits(logits[:3], labels[:3] * 0.9 + 0.05)
    found = targets.losses(logits, target, 0.1, multi_label=True)
    assert torch.isfinite(found).all()
    assert (found @ counted).item() / 3 == pytest.approx(expected.item())
    same = outcomes.accuracies(logits[:3].numpy(), labels[:3].numpy())
    assert targets.accuracies(logits, target, multi_label=True)[:3].numpy() == pytest.approx(same)


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_mixed_images_have_mixed_labels_and_images_that_do_not_count_take_no_part(way):
    torch.manual_seed(0)
    labels = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=torch.bool)
    target = targets.without(targets.of_labels(labels), slice(3, None))
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8) + torch.arange(4, dtype=torch.uint8)[:, None, None, None]
    batch, mixed = Mixing(Regularization(**{way: 1.0}), 2)(pixels, target)
    assert batch.shape == pixels.shape and mixed.shape == (4, 3)
    assert (mixed[:, :2] <= mixed[:, 2:] + 1e-6).all() and (mixed >= 0).all()
    assert mixed[:, 2].sum().item() == pytest.approx(3)
    losses = targets.losses(torch.zeros(4, 2), mixed, multi_label=True)  # of chances of one half
    assert losses[mixed[:, 2] > 0].tolist() == pytest.approx([np.log(2)] * int((mixed[:, 2] > 0).sum()))


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_log_losses_and_overlaps_are_scikit_learns(seed, n, k):
    draw = np.random.default_rng(seed)
    logits, labels = draw.normal(size=(n, k)), draw.random((n, k)) < 0.4
    chances = 1 / (1 + np.exp(-logits))
    expected = -np.where(labels, np.log(chances), np.log1p(-chances)).mean(axis=1)
    assert outcomes.log_losses(logits, labels) == pytest.approx(expected)
    overlaps = [
        len(a & b) / len(a | b) if a | b else 1.0
        for a, b in ((set(np.flatnonzero(p)), set(np.flatnonzero(q))) for p, q in zip(logits > 0, labels, strict=True))
    ]
    assert outcomes.accuracies(logits, labels) == pytest.approx(overlaps)


@pytest.mark.slow
@pytest.mark.skipif(cores() < 2, reason="one process per core")
def test_two_processes_have_the_loss_curve_of_one(base, tmp_path):
    """Also where the last mini-batch has a single image, which is no share for the second process."""
    small, inputs = shapes_dataset(base), shapes_inputs(base)
    images = len(small.split("train"))
    stages = (Stage(unfreeze="all", epochs=2, lr=1e-4),)
    settings = params.Finetune(stages=stages, batch_size=(images - 1) // 2, frozen_layers="compute")
    curves = []
    for processes in (1, 2):
        model = classifier_from(inputs.head, inputs.backbone)
        for module in model.modules():
            if isinstance(module, nn.Dropout):  # each process would draw its own
                module.p = 0.0
        splits = (SplitImages(small.split(name), small.images, classes=SHAPES) for name in ("train", "val"))
        own = settings.model_copy(update={"processes": processes})
        transform = backbones.load(inputs.backbone).transform
        course = finetune.fine_tune(model, transform, *splits, own, 0, tmp_path / f"{processes}.pt", "")
        curves.append([value for one in course.history for value in (one.train_loss, one.val_loss, one.val_accuracy)])
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
