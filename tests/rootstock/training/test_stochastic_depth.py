"""Stochastic depth: residual branches of torchvision's and timm's networks are left out at random in training."""

import pytest
import torch
from torch import nn

from rootstock.backbones.networks import build
from rootstock.config.params import Regularization
from rootstock.system.errors import ParamsError
from rootstock.training.stochastic_depth import stochastic_depth
from tests.fine_tuning import stages, start, tune


def rates(network: nn.Module) -> list[float]:
    found = [getattr(module, "drop_prob", getattr(module, "p", None)) for module in network.modules()
             if type(module).__name__ in ("DropPath", "StochasticDepth")]  # fmt: skip
    return [rate for rate in found if rate is not None]


@pytest.mark.parametrize(
    "name", ["convnext_tiny", "timm/vit_tiny_patch16_224", "timm/convnext_atto", "efficientnet_lite0"]
)
def test_the_rate_rises_linearly_to_the_last_block_and_the_network_is_left_as_it_was(name):
    size = 224 if "vit" in name else 32
    network = build(name, size).eval()
    pixels, before = torch.rand(2, 3, size, size), rates(network)
    names = list(network.state_dict())
    with torch.no_grad():
        expected = network(pixels)
        with stochastic_depth(network, 0.5):
            assert rates(network) == pytest.approx(torch.linspace(0, 0.5, len(rates(network))).tolist())
            assert list(network.state_dict()) == names
            torch.testing.assert_close(network(pixels), expected)  # not in evaluation mode
            first, second = (network.train()(pixels) for _ in range(2))
            assert not torch.equal(first, second)
            network.eval()
    assert rates(network) == before


def test_a_network_without_residual_branches_is_refused_before_training(base, tmp_path):
    settings = stages(("all", 1), regularization=Regularization(drop_path=0.1))
    with pytest.raises(
        ParamsError, match=r"drop_path is 0\.1, and ShuffleNetV2 has no residual branches that could be"
    ):
        tune(start(base), base, settings, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_a_rate_of_zero_leaves_a_network_its_own():
    network = build("convnext_tiny", 32)
    own = rates(network)
    with stochastic_depth(network, 0.0):
        assert rates(network) == own and max(own) > 0
