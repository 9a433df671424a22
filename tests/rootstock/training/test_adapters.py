"""`unfreeze: lora`: adapters learn beside frozen linear layers, and are part of their weights afterwards."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from rootstock.backbones import backbones
from rootstock.backbones.networks import build, import_timm
from rootstock.config.architectures import Transform
from rootstock.config.params import Averaging
from rootstock.dataset.shards import Reader
from rootstock.system.errors import ParamsError
from rootstock.training import adapters
from rootstock.training.adapters import Adapters
from rootstock.training.classifier import Classifier
from rootstock.training.epoch import validate
from rootstock.training.head import Head
from rootstock.training.split_images import Batches, SplitImages
from rootstock.training.unfreezing import optimiser_of
from tests.fine_tuning import changed, copied, stages, start, tune, tuned
from tests.rootstock.training.test_checkpoints import StoppedError, stopping_after
from tests.small_dataset import CLASSES, small_backbone, small_dataset

WIDTH, KEY = 32, "finetune.stages[0].unfreeze"
LINEAR = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


def transformer(base) -> Classifier:
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 4, "num_classes": 0}
    network = import_timm().models.VisionTransformer(**size)
    empty = Head(np.zeros((len(CLASSES), WIDTH), np.float32), np.zeros(len(CLASSES), np.float32), CLASSES, 0.0)
    return Classifier(network, transform(base), empty)


def transform(base) -> Transform:
    return Transform.from_dict(backbones.describe(small_backbone(base))["transform"])


def test_only_the_linear_layers_of_the_blocks_and_the_head_have_changed_and_none_is_new(base, tmp_path):
    model = transformer(base)
    before = copied(model)
    history = tune(model, base, stages(("lora", 4), lr=1e-2), tmp_path / "checkpoint")
    assert history[-1].unfrozen == "lora" and history[-1].train_loss < history[0].train_loss
    blocks = {f"backbone.blocks.{block}.{name}" for block in range(2) for name in LINEAR}
    assert list(model.state_dict()) == list(before)
    assert changed(before, model) == blocks | {"head.weight", "head.bias"}
    assert all(type(module).__module__.partition(".")[0] != "peft" for module in model.modules())


@pytest.mark.parametrize("rank", [1, 3])
def test_what_was_added_has_the_rank_that_was_asked_for(base, tmp_path, rank):
    model = transformer(base)
    before = copied(model)
    tune(model, base, stages(("lora", 2), lr=1e-2, lora_rank=rank), tmp_path / "checkpoint")
    name = "backbone.blocks.1.mlp.fc1.weight"
    added = model.state_dict()[name] - before[name]
    assert torch.linalg.matrix_rank(added, rtol=1e-3) == rank


def test_the_merged_network_answers_as_it_was_validated(base, tmp_path):
    model, small = transformer(base), small_dataset(base)
    history = tune(model, base, stages(("lora", 3), lr=1e-2), tmp_path / "checkpoint")
    best = max(history, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss))
    with Reader(small.images) as reader:
        val = SplitImages(small.split("val"), small.images)
        loss, accuracy = validate(model, Batches(val, reader, transform(base), 32, torch.device("cpu")), None)
    assert (loss, accuracy) == (pytest.approx(best.val_loss, rel=1e-4), best.val_accuracy)


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(base, tmp_path):
    settings = stages(("head", 1), ("lora", 2), ("all", 1), batch_size=16, checkpoint_minutes=0)
    undisturbed, resumed = transformer(base), transformer(base)
    expected = tune(undisturbed, base, settings, tmp_path / "undisturbed")
    with stopping_after(130), pytest.raises(StoppedError):
        tune(transformer(base), base, settings, tmp_path / "stopped")
    assert tune(resumed, base, settings, tmp_path / "stopped") == expected
    assert not changed(copied(undisturbed), resumed)


def test_a_later_stage_trains_the_layers_themselves_and_the_adapters_no_more(base):
    model, settings = transformer(base), stages(("lora", 1), ("all", 1), layer_decay=0.5, weight_decay=0.03)
    Adapters(model.backbone, 2, 32, KEY)
    own = {id(parameter) for parameter in adapters.parameters(model.backbone)}
    for stage, trains_them in zip(settings.stages, (True, False), strict=True):
        groups = optimiser_of(model, stage, settings).param_groups
        trained = {id(parameter): group["peak"] for group in groups for parameter in group["params"]}
        assert own <= trained.keys() if trains_them else not own & trained.keys()
        assert all(parameter.requires_grad == (id(parameter) in trained) for parameter in model.parameters())
        if trains_them:  # all alike: no decay from layer to layer
            assert set(trained.values()) == {1e-3} and len(trained) == len(own) + 2


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "convnext_tiny"])
def test_layers_that_only_lend_their_weights_to_a_function_have_no_adapter(name):
    network = build(name, 224).eval()
    linear = [name for name, module in network.named_modules() if type(module) is nn.Linear]
    Adapters(network, 2, 224, KEY)
    for own in adapters.parameters(network):
        nn.init.constant_(own, 0.01)
    network(torch.rand(1, 3, 224, 224)).square().sum().backward()
    assert len(adapters.parameters(network)) <= 2 * len(linear)
    assert all(own.grad is not None and own.grad.any() for own in adapters.parameters(network))


def test_no_weights_are_averaged_with_adapters_and_a_run_says_so(base, tmp_path, caplog):
    with caplog.at_level("INFO"):
        settings = stages(("lora", 2), averaging=Averaging(soup=2, interpolation=2))
        course = tuned(transformer(base), base, settings, tmp_path / "checkpoint")
    assert course.averages == [] and "weights are not averaged: the mean of LoRA's factors" in caplog.text


def test_a_network_without_linear_layers_is_refused_before_training(base, tmp_path):
    with pytest.raises(ParamsError, match=r"stages\[1\]\.unfreeze is 'lora', and ShuffleNetV2 has no linear layers"):
        tune(start(base), base, stages(("head", 1), ("lora", 1)), tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_without_peft_the_error_says_how_to_install_it(base, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else find(name, *more))
    with pytest.raises(ParamsError, match=r"needs PEFT: pip install -c constraints.txt -e '\.\[lora\]'"):
        tune(transformer(base), base, stages(("lora", 1)), tmp_path / "checkpoint")
