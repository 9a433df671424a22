"""Feature layers: three levels for every family, any module, and pooling of feature maps to vectors."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from rootstock.backbones import backbones, depths
from rootstock.backbones.depths import cut, parameters_below, pool, resolve_layer
from rootstock.backbones.networks import build
from rootstock.config import params
from rootstock.config.architectures import FEATURE_LEVELS, NAMES, PENULTIMATE, SHORTCUTS, architecture
from rootstock.config.params import Backbone
from rootstock.features import feature_keys
from rootstock.system.errors import ParamsError
from rootstock.training.classifier import Classifier
from rootstock.training.head import Head
from rootstock.training.unfreezing import parameters_by_block
from tests.rootstock.backbones.test_backbones import FAMILIES, meta
from tests.slow import slow

OTHERS = {"lenet5": 32, "plain34": 32, "efficientnet_lite0": 32, "timm/vit_tiny_patch16_224": 224,
          "timm/swin_tiny_patch4_window7_224": 224, "timm/convnext_atto": 32, "timm/hrnet_w18_small": 64}  # fmt: skip
SIZES = {name: size for name, (size, _, _) in FAMILIES.items()} | OTHERS
SMALL = ("alexnet", "densenet121", "efficientnet_b0", "efficientnet_lite0", "googlenet", "inception_v3", "lenet5",
         "mobilenet_v2", "plain34", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1",
         "timm/convnext_atto", "timm/vit_tiny_patch16_224")  # the others take a second or more each  # fmt: skip


@pytest.mark.parametrize("name", [*SMALL, *slow(*(name for name in SIZES if name not in SMALL))])
def test_every_family_has_three_depths_each_below_the_next(name):
    size = SIZES[name]
    network = build(name, size).eval()
    used: set[int] = set()
    for depth in (*FEATURE_LEVELS, PENULTIMATE):
        layer = depth if depth == PENULTIMATE else resolve_layer(network, name, depth)
        found = build(name, size).eval() if depth == PENULTIMATE else cut(network, name, depth, "avg")
        pooled = found(torch.rand(2, 3, size, size))
        assert pooled.ndim == 2 and pooled.shape[0] == 2 and pooled.isfinite().all(), layer
        below = {id(parameter) for parameter in parameters_below(pooled)}
        if depth != PENULTIMATE:
            assert used < below
            used = below
        network = build(name, size).eval() if depth == PENULTIMATE else _uncut(found)
    assert len(used) <= len(list(network.parameters()))


def _uncut(network: depths.Cut) -> nn.Module:
    whole = network.network
    whole.get_submodule(network.layer)._forward_hooks.clear()
    return whole


@pytest.mark.parametrize(
    "name",  # one of each family, and the others in `make test-slow`
    [*(name for name in NAMES if name in SIZES), *slow(*(name for name in NAMES if name not in SIZES))],
)
def test_every_network_has_its_depths_at_the_strides_known_from_the_literature(name):
    """Edges and textures at stride 4 or 8, parts at stride 16, objects at the end."""
    size = {"inception_v3": 299, "lenet5": 32}.get(name, 224)
    with meta(name):
        network = build(name, size).eval()
    at: dict[str, float] = {}
    for depth, layer in depths.named_depths(network, name).items():

        def note(_: nn.Module, __: object, output: torch.Tensor, depth: str = depth) -> None:
            if output.ndim == 4:
                at.setdefault(depth, size / output.shape[1 if depths.has_channels_last(network) else 2])

        network.get_submodule(layer).register_forward_hook(note)
    if not name.startswith("regnet_y_128"):  # half a minute
        network(torch.zeros(1, 3, size, size, device=next(network.parameters()).device))
    if name.startswith("vit") or name == "regnet_y_128gf":
        return
    assert at["low"] < 9 and at["low"] < at["mid"] <= at["high"]
    assert at["mid"] < 20
    assert 40 >= at["high"] >= 16


POOLED = {"avg": 1, "max": 1, "avgmax": 2, "gem": 1}


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "vit_b_32", "timm/vit_tiny_patch16_224"])
@pytest.mark.parametrize("pooling", POOLED)
def test_maps_and_tokens_are_pooled_to_vectors(name, pooling):
    size = 224 if "vit" in name else 64
    found = cut(build(name, size).eval(), name, "mid", pooling)
    width = {"resnet18": 256, "swin_t": 384, "vit_b_32": 768, "timm/vit_tiny_patch16_224": 192}[name]
    with torch.inference_mode():
        assert found(torch.rand(2, 3, size, size)).shape == (2, POOLED[pooling] * width)


def test_each_pooling_computes_what_its_name_says():
    values = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]]])
    assert pool(values, "avg").tolist() == [[2, 2]]
    assert pool(values, "max").tolist() == [[3, 6]]
    assert pool(values, "avgmax").tolist() == [[2, 2, 3, 6]]
    gem = pool(values, "gem")[0]
    np.testing.assert_allclose(gem, [(36 / 3) ** (1 / 3), (216 / 3) ** (1 / 3)], rtol=1e-5)


def test_feature_maps_of_a_swin_have_their_channels_last_and_are_pooled_over_positions():
    network = build("swin_t", 64).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        whole = network(images)
        torch.testing.assert_close(cut(network, "swin_t", "norm", "avg")(images), whole)


def test_the_class_token_is_the_input_of_a_transformers_classifier():
    network = build("vit_b_32", 64).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        whole = network(images)
        torch.testing.assert_close(cut(network, "vit_b_32", "high", "cls")(images), whole)


def test_the_class_token_is_not_averaged_with_the_patches():
    network = build("vit_b_32", 64).eval()
    tokens = []
    network.encoder.ln.register_forward_hook(lambda _, __, output: tokens.append(output))
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        got = cut(network, "vit_b_32", "high", "avg")(images)
    torch.testing.assert_close(got, tokens[0][:, 1:].mean(1))


def test_nothing_above_the_layer_is_computed_and_nothing_changes_its_output_in_place():
    network = build("vgg11", 64).eval()
    seen = []
    network.features[12].register_forward_hook(lambda *_: seen.append("above"))
    plain = []
    network.features[8].register_forward_hook(lambda _, __, output: plain.append(output.clone()))
    got = cut(network, "vgg11", "features.8", "avg")(torch.rand(1, 3, 64, 64))  # a ReLU in place follows
    assert not seen
    torch.testing.assert_close(got, plain[0].mean((2, 3)))
    assert (got < 0).any()


@pytest.mark.parametrize("layer", ["fc.0", "features.99", "layer3.1.conv7"])
def test_an_unknown_layer_is_refused_and_the_nearest_is_suggested(layer):
    with pytest.raises(ParamsError, match=rf"extract.layer is '{layer}'; expected low, mid, high, penultimate, or the"):
        cut(build("resnet18", 32), "resnet18", layer, "avg")
    with pytest.raises(ParamsError, match=r"Did you mean layer3\.1\.conv2"):
        cut(build("resnet18", 32), "resnet18", "layer3.1.conv3", "avg")


def test_a_network_without_a_class_token_refuses_that_pooling():
    with pytest.raises(ParamsError, match=r"extract.pooling is 'cls', but this layer has no class token; expected avg"):
        cut(build("resnet18", 32), "resnet18", "mid", "cls")


def test_a_misspelt_depth_is_refused_before_a_network_is_built():
    with pytest.raises(ValueError, match="is 'penultimat'; expected low, mid, high, penultimate, or a module name"):
        params.Extract(layer="penultimat")
    assert params.Extract(layer="layer3.0.conv1").layer == "layer3.0.conv1"


# In the pipeline


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    backbones.prepare(Backbone(name="resnet18", weights="random", image_size=32), 0, folder)
    return folder


def test_the_description_has_width_parameters_and_cost_of_each_depth(prepared):
    described = json.loads((prepared / "backbone.json").read_bytes())
    assert {depth: (one["layer"], one["width"]) for depth, one in described["depths"].items()} == {
        "low": ("layer1", 64), "mid": ("layer3", 256), "high": ("layer4", 512)
    }  # fmt: skip
    for figure in ("parameters", "macs"):
        values = [one[figure] for one in described["depths"].values()]
        assert values == sorted(values) and values[-1] == described[figure]


def test_a_depth_and_the_module_it_stands_for_share_a_cache_and_other_depths_do_not(prepared):
    described = backbones.describe(prepared)

    def key(**settings: str) -> str:
        return feature_keys.key_of(feature_keys.cache_key_fields(described, params.Extract(**settings), "eager"))

    assert key(layer="mid") == key(layer="layer3") != key(layer="low")
    assert key(layer="mid") != key(layer="mid", pooling="max")
    assert key() == key(pooling="max") != key(layer="high")  # the penultimate layer has its own pooling


def test_a_cut_backbone_is_loaded_with_its_width(prepared):
    found = backbones.load(prepared, "mid", "avgmax")
    assert found.width == 512 and not found.network.training
    with torch.inference_mode():
        assert found.network(torch.rand(1, 3, 32, 32)).shape == (1, 512)


def test_fine_tuning_a_cut_network_unfreezes_blocks_below_the_cut(prepared):
    found = backbones.load(prepared, "mid", "avg")
    names = [name for name, _ in parameters_by_block(found.network)]
    assert names == ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"]
    head = Head(np.ones((3, 256), np.float32), np.zeros(3, np.float32), list("abc"), 1.0)
    model = Classifier(found.network, found.transform, head)
    pixels = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    model(pixels).sum().backward()
    touched = {id(parameter) for parameter in model.backbone.parameters() if parameter.grad is not None}
    assert touched == {id(parameter) for _, block in parameters_by_block(found.network) for parameter in block}


def test_variants_of_resnet34_have_the_same_depths():
    for variant in SHORTCUTS:
        assert architecture("resnet34", variant).depths == ("layer1", "layer3", "layer4")
        network = build("resnet34", 32, variant).eval()
        assert cut(network, "resnet34", "low", "avg")(torch.rand(1, 3, 32, 32)).shape == (1, 64)
