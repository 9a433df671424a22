"""Weights of an earlier run: its model, its backbone or a checkpoint of its fine-tuning."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rootstock.backbones import backbones, weights
from rootstock.config.params import Backbone
from rootstock.model import model
from rootstock.system.errors import DamagedError, WeightsError
from rootstock.training.classifier import Classifier
from rootstock.training.head import Head
from tests.squeezenet import NAME, prepared, same


@pytest.fixture
def earlier(tmp_path) -> tuple[Path, dict[str, Tensor]]:
    """A model of an earlier run, and its backbone's weights."""
    backbones.prepare(Backbone(name=NAME, weights="random", image_size=32), 3, tmp_path / "backbone")
    backbone = backbones.load(tmp_path / "backbone")
    head = Head(np.ones((5, 512), np.float32), np.zeros(5, np.float32), list("abcde"), 1.0)
    network = Classifier(backbone.network, backbone.transform, head)
    model.save(tmp_path / "model", network, {"backbone": backbone.description}, "a card")
    return tmp_path / "model", load_file(tmp_path / "backbone" / backbones.WEIGHTS)


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_model_of_an_earlier_run_provides_its_backbone(file, earlier, tmp_path):
    folder, backbone = earlier
    assert same(prepared(folder / file, tmp_path / "out"), backbone)


def test_a_backbone_and_a_checkpoint_of_an_earlier_run_provide_the_backbone_too(earlier, tmp_path):
    folder, backbone = earlier
    assert same(prepared(tmp_path / "backbone", tmp_path / "out"), backbone)
    content = {"model": {}, "best": load_file(folder / "model.safetensors"), "epoch": 3}
    torch.save(content, tmp_path / "finetune.pt")
    assert same(prepared(tmp_path / "finetune.pt", tmp_path / "out"), backbone)


def test_a_model_of_another_architecture_is_refused_by_name(earlier, tmp_path):
    with pytest.raises(
        WeightsError, match=r"weights of squeezenet1_1, but backbone.name is resnet18; set it to squeezenet1_1"
    ):
        weights.find(Backbone(name="resnet18", weights=str(earlier[0])), 0, 32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"contains none of model\.safetensors, weights\.safetensors"):
        weights.find(Backbone(name=NAME, weights=str(tmp_path / "empty")), 0, 32)


@pytest.mark.parametrize("said", [b"", b"[]", b'{"backbone": {}}', b'{"backbone": "resnet"}', b'{"name": "resn'])
def test_a_damaged_description_of_an_earlier_model_is_an_error_that_names_it(state, tmp_path, said):
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_bytes(said)
    with pytest.raises(DamagedError, match=re.escape(str(tmp_path / "model.json"))):
        prepared(str(tmp_path), tmp_path / "out")
