"""DINOv2, DINOv3 and SigLIP image towers of timm: their inputs, features, sizes and adapters, with random weights."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from rootstock.backbones import backbones, weights
from rootstock.backbones.backbones import transform_of
from rootstock.backbones.depths import uncut
from rootstock.backbones.networks import import_timm
from rootstock.config.params import Backbone
from rootstock.images.loader import Normalise, view
from rootstock.training import adapters
from rootstock.training.adapters import Adapters
from rootstock.training.unfreezing import default_layer_decay, parameters_by_block
from tests.slow import slow

DINOV2, DINOV3 = "vit_small_patch14_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m"
SIGLIP, CONVNEXT = "vit_base_patch16_siglip_224.v2_webli", "convnext_tiny.dinov3_lvd1689m"
SMALL = {DINOV2: 56, DINOV3: 64, "vit_small_patch14_reg4_dinov2.lvd142m": 56, SIGLIP: 64}  # pixels
TOWERS = [DINOV3, *slow(*(name for name in SMALL if name != DINOV3))]


@pytest.fixture
def prepared(tmp_path):
    def prepare(name: str, size: int | None = None, given: str = "random") -> backbones.Backbone:
        backbones.prepare(Backbone(name=f"timm/{name}", weights=given, image_size=size), 0, tmp_path / "out")
        return backbones.load(tmp_path / "out")

    return prepare


@pytest.mark.parametrize("name", [DINOV2, DINOV3, SIGLIP, CONVNEXT])
@pytest.mark.parametrize("size", [(500, 333), (300, 600)])
def test_a_tower_gets_the_same_input_as_in_timm(name, size):
    own = transform_of(Backbone(name=f"timm/{name}"))
    timm = import_timm()
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config(pretrained_cfg=vars(timm.get_pretrained_cfg(name)))
    )
    blocks = np.random.default_rng(0).integers(0, 256, (-(-size[1] // 8), -(-size[0] // 8), 3), dtype=np.uint8)
    image = Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)[: size[1], : size[0]])
    file = io.BytesIO()
    image.save(file, "PNG")
    expected = transform(image)
    got = Normalise(own)(view(file.getvalue(), own, "none", None, "full")[None])[0]
    assert got.shape == expected.shape
    two_levels = 2 / 255 / min(own.std) + 1e-5  # torch's resize of bytes is within two levels of Pillow's
    torch.testing.assert_close(got, expected, rtol=0, atol=two_levels)


@pytest.mark.parametrize("name", TOWERS)
def test_features_are_those_of_timm_and_the_blocks_those_of_the_network(prepared, name):
    size = SMALL[name]
    backbone = prepared(name, size)
    network = import_timm().create_model(name, num_classes=0, img_size=size).eval()
    network.load_state_dict(uncut(backbone.network).state_dict())
    images = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(backbone.network(images), network(images))
    assert backbone.width == network.num_features
    blocks = [block for block, _ in parameters_by_block(backbone.network)]
    assert [block for block in blocks if block.startswith("blocks.")] == [f"blocks.{n}" for n in range(12)]
    assert default_layer_decay(backbone.network) == 0.75


@pytest.mark.parametrize("name", [DINOV2, pytest.param(SIGLIP, marks=pytest.mark.slow)])
def test_published_weights_are_resampled_to_another_image_size_as_in_timm(prepared, tmp_path, monkeypatch, name):
    torch.manual_seed(3)
    published = import_timm().create_model(name, num_classes=0)
    nn.init.normal_(published.pos_embed)
    save_file(published.state_dict(), tmp_path / f"{name}.safetensors")
    monkeypatch.setenv(weights.MIRROR, str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    backbone = prepared(name, SMALL[name], "pretrained")
    published.set_input_size(SMALL[name])
    images = torch.rand(1, 3, SMALL[name], SMALL[name])
    with torch.inference_mode():
        torch.testing.assert_close(backbone.network(images), published.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_every_adapter_of_a_tower_learns(prepared, name):
    network = prepared(name, SMALL[name]).network
    Adapters(network, 2, SMALL[name], "key")
    for parameter in adapters.parameters(network):
        nn.init.constant_(parameter, 0.01)
    network(torch.rand(1, 3, SMALL[name], SMALL[name])).square().sum().backward()
    found = adapters.parameters(network)
    assert len(found) >= 12 * 4 * 2  # matrices of two in four layers of twelve blocks
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in found)
