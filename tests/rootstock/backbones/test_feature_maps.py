"""Feature maps of every family are (n, c, h, w), and the first layer's filters are those of the network."""

import pytest
import torch
from torchvision.models import get_model

from rootstock.backbones import depths
from rootstock.backbones.feature_maps import Layout, feature_maps, first_filters, layers_to_explain
from rootstock.backbones.networks import build

SIZE = 64
FAMILIES = {  # levels and the channels and sides of their maps
    "resnet18": {"layer1": (64, 16), "layer3": (256, 4), "layer4": (512, 2)},
    "swin_t": {"features.1": (96, 16), "features.5": (384, 4), "norm": (768, 2)},
    "timm/vit_tiny_patch16_224": {"blocks.2": (192, 4), "blocks.8": (192, 4), "blocks.11": (192, 4)},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_feature_levels_of_a_network_have_maps(name):
    network = build(name, SIZE, None).eval()
    found = feature_maps(network, list(depths.named_depths(network, name).values()), torch.rand(2, 3, SIZE, SIZE))
    expected = {layer: (2, channels, side, side) for layer, (channels, side) in FAMILIES[name].items()}
    assert {layer: tuple(maps.shape) for layer, maps in found.items()} == expected


def test_maps_are_those_before_a_later_layer_changes_them_in_place():
    network = get_model("vgg11", weights=None).eval()
    [maps] = feature_maps(network, ["features.0"], torch.rand(1, 3, SIZE, SIZE)).values()
    assert (maps < 0).any()  # the ReLU after it works in place


def test_layers_above_the_one_where_a_network_is_cut_are_left_out():
    network = depths.cut(build("resnet18", SIZE, None).eval(), "resnet18", "mid", "avg")
    assert list(feature_maps(network, ["layer1", "layer3", "layer4"], torch.rand(1, 3, SIZE, SIZE))) == [
        "layer1",
        "layer3",
    ]


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (2, 4, 4, 5), (2, 17, 5)])
def test_an_output_is_restored_from_its_maps(shape):
    output = torch.rand(shape)
    layout = Layout(prefix_tokens=1, channels_last=shape == (2, 4, 4, 5))
    maps = layout.maps(output)
    assert maps is not None and maps.shape == (2, 5, 4, 4)
    assert torch.equal(layout.restored(maps, output), output)


@pytest.mark.parametrize("shape", [(2, 5), (2, 12, 5)])
def test_an_output_without_a_square_grid_of_positions_has_no_maps(shape):
    assert Layout(prefix_tokens=1, channels_last=False).maps(torch.rand(shape)) is None


def test_layers_are_tried_from_the_last_one_down_and_in_a_transformer_the_norm_before_attention_follows_its_block():
    network = build("timm/vit_tiny_patch16_224", SIZE, None)
    assert layers_to_explain(network, "timm/vit_tiny_patch16_224")[:2] == ["blocks.11", "blocks.11.norm1"]
    cut = depths.cut(build("resnet18", SIZE, None), "resnet18", "mid", "avg")
    assert layers_to_explain(cut, "resnet18")[0] == "layer3"


def test_the_filters_of_the_first_layer_are_shown_where_they_see_colours():
    network = build("resnet18", SIZE, None)
    assert torch.equal(first_filters(network), network.conv1.weight)
    assert first_filters(build("lenet5", 32, None)) is None  # which sees grey values
