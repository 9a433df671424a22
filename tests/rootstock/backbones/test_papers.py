"""Published figures are shown beside measured ones, and agree with them where stated."""

import pytest
import torch
from torch import nn

from rootstock.backbones import backbones
from rootstock.backbones.networks import build_with_classifier
from rootstock.backbones.papers import PAPERS
from rootstock.config.params import Backbone

LAYERS_THAT_COUNT = nn.Conv2d | nn.Linear


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("alexnet", 61_100_840, 60e6),
        ("vgg16", 138_357_544, 138e6),
        ("vgg19", 143_667_240, 144e6),
        ("googlenet", 6_624_904, 6.8e6),
    ],
)
def test_measured_figures_are_close_to_those_of_the_papers(name, parameters, said):
    with torch.device("meta"):
        network = build_with_classifier(name, 224)
    assert count(network) == parameters == pytest.approx(said, rel=0.03)
    assert f"{said / 1e6:g} million" in PAPERS[name].parameters


def test_vgg16s_weights_are_about_five_hundred_megabytes():
    with torch.device("meta"):
        assert 4 * count(build_with_classifier("vgg16", 224)) // 2**20 == 527
    assert "about 500 MB" in PAPERS["vgg16"].parameters


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "vgg19", "resnet34", "plain34"])
def test_a_network_has_as_many_layers_with_weights_as_its_paper_counts(name):
    with torch.device("meta"):
        layers = [n for n, m in build_with_classifier(name, 224).named_modules() if isinstance(m, LAYERS_THAT_COUNT)]
    assert len([layer for layer in layers if "downsample" not in layer]) == PAPERS[name].layers


def test_googlenet_is_twenty_two_layers_deep():
    """The longest path: three convolutions, two in each of nine modules, the output."""
    with torch.device("meta"):
        network = build_with_classifier("googlenet", 224)
    modules = [name for name, _ in network.named_children() if name.startswith("inception")]
    assert 3 + 2 * len(modules) + 1 == PAPERS["googlenet"].layers


def test_a_bottleneck_of_one_by_one_convolutions_saves_what_the_description_says():
    direct = nn.Conv2d(256, 32, 5, bias=False)
    bottleneck = nn.Sequential(nn.Conv2d(256, 64, 1, bias=False), nn.Conv2d(64, 32, 5, bias=False))
    assert (count(direct), count(bottleneck)) == (204_800, 67_584)
    assert "204,800" in PAPERS["googlenet"].idea and "67,584" in PAPERS["googlenet"].idea


def test_the_description_of_a_network_contains_the_figures_of_its_paper(tmp_path):
    described = backbones.prepare(Backbone(name="lenet5", weights="random"), 0, tmp_path / "lenet5")
    assert described["parameters"] == 60_000
    assert described["paper"]["parameters"].startswith("60 thousand (60,000 trainable")
    assert "linear" in described["paper"]["differs"]
    modern = Backbone(name="lenet5", variant="average_pooling", weights="random")
    assert backbones.prepare(modern, 0, tmp_path / "modern")["parameters"] == 61_706 - 850
