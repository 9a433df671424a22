"""ResNet-34 and its variants: the same layers, other shortcuts."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet34

from rootstock.backbones.residual import ZeroPadded, plain34, shortcuts34


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


PROJECTIONS = sum(below * above + 2 * above for below, above in ((64, 128), (128, 256), (256, 512)))  # 1x1 and its norm
EQUAL = sum(blocks * (width * width + 2 * width) for blocks, width in ((3, 64), (3, 128), (5, 256), (2, 512)))


def test_plain_and_residual_networks_differ_only_in_the_projection_shortcuts():
    assert count(resnet34()) - count(plain34()) == PROJECTIONS == 173_824
    shapes = {name: tuple(value.shape) for name, value in plain34().state_dict().items()}
    residual = {name: tuple(value.shape) for name, value in resnet34().state_dict().items() if "downsample" not in name}
    assert shapes == residual


def test_the_three_shortcut_options_have_as_many_parameters_as_in_the_paper():
    a, b, c = (count(shortcuts34(f"shortcut_{option}")) for option in "abc")
    assert a == count(plain34())  # "parameter-free"
    assert b == count(resnet34()) == a + PROJECTIONS
    assert c == b + EQUAL  # the blocks that keep their shape have one, too


def test_all_variants_have_thirty_four_layers_with_weights():
    for network in (plain34(), *(shortcuts34(f"shortcut_{option}") for option in "abc")):
        layers = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        assert len([name for name in layers if "downsample" not in name]) == 34


def test_option_a_keeps_every_second_pixel_and_adds_zeros():
    x = torch.arange(32.0).view(1, 2, 4, 4)
    padded = ZeroPadded(2, 3)(x)
    assert padded.shape == (1, 5, 2, 2)
    assert torch.equal(padded[0, 0], torch.tensor([[0.0, 2.0], [8.0, 10.0]])) and not padded[0, 2:].any()


@pytest.mark.parametrize("option", "ab")
def test_a_residual_block_with_zero_weights_passes_its_input_on_and_a_plain_one_does_not(option):
    """The paper's point: with shortcuts, a block starts from the identity instead of having to learn it."""
    networks = {"plain": plain34(), "residual": shortcuts34(f"shortcut_{option}")}
    x = torch.rand(1, 64, 8, 8)
    passed = {}
    for name, network in networks.items():
        block = network.eval().layer1[1]
        nn.init.zeros_(block.bn2.weight)
        passed[name] = block(x)
    assert torch.equal(passed["residual"], x) and not passed["plain"].any()


def test_torchvisions_weights_fit_option_b():
    state = resnet34().state_dict()
    shortcuts34("shortcut_b").load_state_dict(state)


@pytest.mark.parametrize(
    "build", [plain34, *(lambda option=option: shortcuts34(f"shortcut_{option}") for option in "abc")]
)
def test_every_variant_computes_logits_and_gradients(build):
    network = build()
    network(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
