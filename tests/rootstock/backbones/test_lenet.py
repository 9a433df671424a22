"""LeNet-5 matches the paper: connections, parameter counts, squashing function."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rootstock.backbones.lenet import C3_SEES, LeNet5, PartlyConnected, Squash, Subsample


def trainable(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("variant", "by_layer", "with_ten_classes"),
    [
        (None, {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48_120, "f6": 10_164}, 60_850),
        ("average_pooling", {"c1": 156, "s2": 0, "c3": 2416, "s4": 0, "c5": 48_120, "f6": 10_164}, 61_706),
    ],
)
def test_each_layer_has_as_many_parameters_as_the_paper_says(variant, by_layer, with_ten_classes):
    network = LeNet5(variant, classes=10)
    assert {name: trainable(getattr(network, name)) for name in by_layer} == by_layer
    assert trainable(network) == with_ten_classes
    without_output = with_ten_classes - 850
    assert variant or without_output == 60_000  # "60,000 trainable parameters"


def test_lenet5_has_as_many_connections_as_the_paper_says():
    per_unit = {"c1": 25 + 1, "s2": 4 + 1, "s4": 4 + 1, "c5": 400 + 1, "f6": 120 + 1, "rbf": 84}
    units = {"c1": 6 * 28**2, "s2": 6 * 14**2, "s4": 16 * 5**2, "c5": 120, "f6": 84, "rbf": 10}
    c3 = sum(25 * len(sees) + 1 for sees in C3_SEES) * 10**2
    assert c3 + sum(per_unit[layer] * units[layer] for layer in units) == 340_908


def test_the_third_layer_is_connected_as_in_table_one():
    assert [len(sees) for sees in C3_SEES] == [3] * 6 + [4] * 9 + [6]
    per_map_below = [sum(below in sees for sees in C3_SEES) for below in range(6)]
    assert per_map_below == [10] * 6  # every map of S2 is seen by ten of C3
    contiguous = [{(start + step) % 6 for step in range(width)} for width in (3, 4) for start in range(6)]
    assert [set(sees) for sees in C3_SEES[:12]] == contiguous


def test_a_partly_connected_layer_is_the_sum_over_the_maps_it_sees():
    layer = PartlyConnected(C3_SEES, 6)
    torch.manual_seed(0)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    maps = torch.randn(2, 6, 14, 14)
    got, at = layer(maps), 0
    for above, sees in enumerate(C3_SEES):
        kernels = layer.weight[at : at + len(sees)][None]
        torch.testing.assert_close(got[:, above : above + 1], F.conv2d(maps[:, sees], kernels, layer.bias[[above]]))
        at += len(sees)


def test_subsampling_adds_four_neighbours_times_a_weight_plus_a_bias():
    layer = Subsample(2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 2.0])), layer.bias.copy_(torch.tensor([1.0, -1.0]))
    maps = torch.arange(32.0).view(1, 2, 4, 4)
    assert layer(maps)[0, 0, 0, 0] == 0.5 * (0 + 1 + 4 + 5) + 1
    assert layer(maps)[0, 1, 1, 1] == 2 * (26 + 27 + 30 + 31) - 1


def test_the_squashing_function_maps_1_to_1():
    torch.testing.assert_close(
        Squash()(torch.tensor([-1.0, 0.0, 1.0])), torch.tensor([-1.0, 0.0, 1.0]), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("variant", [None, "average_pooling"])
def test_lenet5_converts_images_to_grey_and_learns(variant):
    torch.manual_seed(0)
    network = LeNet5(variant, classes=3)
    image = torch.rand(1, 1, 32, 32).expand(4, 3, 32, 32)
    assert network(image).shape == (4, 3)
    network(image).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    coloured = torch.stack([torch.full((32, 32), value) for value in (0.9, 0.2, 0.4)])[None]
    grey = torch.full((1, 3, 32, 32), 0.9 * 0.299 + 0.2 * 0.587 + 0.4 * 0.114)
    torch.testing.assert_close(network(coloured), network(grey))
