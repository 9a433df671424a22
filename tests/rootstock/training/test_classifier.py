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


@pytest.mark.parametrize("name", [SHUFFLENET, MNASNET])
def test_a_classifier_is_read_as_it_was_written(base, tmp_path, name):
    model, other = start(base, name), start(base, name)
    nn.init.normal_(model.head.weight)
    classifier.save(model, tmp_path / "model.safetensors")
    assert changed(copied(model), other) == {"head.weight"}
    classifier.load(other, tmp_path / "model.safetensors")
    assert not changed(copied(model), other)
