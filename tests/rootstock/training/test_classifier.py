"""The classifier that is fine-tuned: it starts as the head on frozen features, and is read as it was written."""

import numpy as np
import pytest
import torch
from torch import nn

from rootstock.backbones import backbones
from rootstock.dataset import shards
from rootstock.features.reader import Features
from rootstock.training import classifier, head
from rootstock.training.split_images import Batches, SplitImages
from tests.fine_tuning import MNASNET, SHUFFLENET, SQUEEZENET, changed, copied, start
from tests.small_dataset import (
    small_backbone,
    small_features,
    small_head,
)  # fmt: skip


@pytest.mark.parametrize("name", [SHUFFLENET, SQUEEZENET])
def test_a_classifier_starts_with_the_logits_of_the_head_on_frozen_features(base, small, name):
    rows = small.split("val").sort_values(["shard", "offset"])
    fitted = head.load(small_head(base, name))
    expected = np.concatenate([fitted.logits(x) for x, _ in Features(small_features(base, name), rows)])
    model, transform = start(base, name), backbones.load(small_backbone(base, name)).transform
    with shards.Reader(small.images) as reader:
        examples = SplitImages(rows, small.images)
        batches = Batches(examples, reader, transform, 8, torch.device("cpu"))
        got = np.concatenate(list(classifier.predict(model, batches(), 8)))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.1


def test_training_switches_dropout_on_and_evaluation_off(base):
    model = start(base, SQUEEZENET).train()
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert dropouts and all(module.training for module in dropouts)
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize(
    ("device", "has_bf16", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),  # T4, V100: there bf16 is emulated, slowly
        ("cpu", True, torch.float32),
    ],
)
def test_training_is_in_bfloat16_or_float16_by_the_gpu_and_in_float32_on_a_cpu(monkeypatch, device, has_bf16, expected):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16 | including_emulation
    )
    assert classifier.precision_on(torch.device(device)) == expected


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_the_backbone_computes_in_the_precision_of_the_device_and_the_head_in_float32(base, monkeypatch, precision):
    monkeypatch.setattr(classifier, "precision_on", lambda device: precision)
    model, dtypes = start(base).eval(), []
    model.backbone.conv5[0].register_forward_hook(lambda layer, given, made: dtypes.append(made.dtype))
    model.head.register_forward_hook(lambda layer, given, made: dtypes.append(made.dtype))
    [logits] = classifier.predict(model, [torch.zeros(2, 3, 32, 32, dtype=torch.uint8)], 2)
    assert dtypes == [precision, torch.float32] and logits.dtype == np.float32


@pytest.mark.parametrize("name", [SHUFFLENET, MNASNET])
def test_a_classifier_is_read_as_it_was_written(base, tmp_path, name):
    model, other = start(base, name), start(base, name)
    nn.init.normal_(model.head.weight)
    classifier.save(model, tmp_path / "model.safetensors")
    assert changed(copied(model), other) == {"head.weight"}
    classifier.load(other, tmp_path / "model.safetensors")
    assert not changed(copied(model), other)
