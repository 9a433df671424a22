"""Folded batch norm: the same outputs and gradients with fewer passes, in any network, and undone afterwards."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rootstock.backbones.networks import build
from rootstock.training.batch_norm import folded, folded_once
from tests.slow import slow

# Convolution before batch norm; timm's, with padding as TensorFlow's and activation inside; batch norm first; none.
# Batch norms, and how many of them follow a convolution alone.
NETWORKS = {
    "resnet18": (20, 20), "efficientnet_lite0": (49, 49), "mobilenet_v2": (52, 52), "googlenet": (57, 57),
    "densenet121": (121, 59), "vgg11": (0, 0), "shufflenet_v2_x0_5": (56, 56), "timm/convnext_atto": (0, 0),
}  # fmt: skip


def network(name: str, size: int = 64) -> nn.Module:
    torch.manual_seed(0)
    made = build(name, size).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return made


def norms_computed(model: nn.Module, batch: Tensor) -> int:
    """Count the calls of batch_norm in a forward pass."""
    with torch.profiler.profile() as profile:
        model(batch)
    return sum(event.count for event in profile.key_averages() if event.key == "aten::native_batch_norm")


@pytest.mark.parametrize("name", [*(name for name in NETWORKS if name != "vgg11"), *slow("vgg11")])
def test_outputs_and_gradients_are_the_same_and_fewer_batch_norms_are_computed(name):
    batch = torch.rand(4, 3, 64, 64)
    plain, other = network(name), network(name)
    before = norms_computed(plain, batch)
    with folded(other, batch):
        assert (before, before - norms_computed(other, batch)) == NETWORKS[name]
        expected, found = plain(batch), other(batch)
        scale = expected.detach().abs().max()
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-4)
        (expected / scale).square().mean().backward()
        (found / scale).square().mean().backward()
    for (label, one), two in zip(plain.named_parameters(), other.parameters(), strict=True):
        if one.grad is not None:
            largest = one.grad.abs().max().clamp_min(1e-8)
            torch.testing.assert_close(two.grad / largest, one.grad / largest, rtol=0, atol=2e-2, msg=label)
    assert norms_computed(other, batch) == before  # afterwards it is as it was
    assert other.state_dict().keys() == plain.state_dict().keys()
    copy.deepcopy(other)


def test_many_batches_are_computed_with_weights_that_are_folded_once(monkeypatch):
    model, batch, folds = network("shufflenet_v2_x0_5"), torch.rand(2, 3, 64, 64), []
    rsqrt = torch.rsqrt
    with folded(model, batch), torch.no_grad():
        expected = model(batch)
        monkeypatch.setattr(torch, "rsqrt", lambda x: (folds.append(x), rsqrt(x))[1])
        with folded_once():
            assert all(torch.equal(model(batch), expected) for _ in range(3))
        assert len(folds) == NETWORKS["shufflenet_v2_x0_5"][1]
        next(model.parameters()).mul_(1.5)
        with folded_once():  # after a change there are other weights
            changed = model(batch)
        assert torch.equal(changed, model(batch)) and not torch.equal(changed, expected)


class Reused(nn.Module):
    """A convolution whose output goes into a batch norm and elsewhere, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.norm.running_mean.fill_(1)
        self.other.running_mean.fill_(2)

    def forward(self, x: Tensor) -> Tensor:
        there = self.first(x)
        y = self.norm(there) + there
        return self.other(self.twice(self.twice(y)))


def test_what_would_change_the_outputs_is_not_folded():
    model, batch = Reused().eval(), torch.rand(2, 3, 4, 4)
    expected = model(batch)
    with folded(model, batch):
        assert torch.equal(model(batch), expected)
    assert torch.equal(model(batch), expected)


def test_changes_of_parameters_within_the_fold_are_kept():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    batch = torch.rand(2, 3, 8, 8)
    with folded(model, batch):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.5)
        inside = model(batch)
    torch.testing.assert_close(model(batch), inside)


def test_an_error_within_the_fold_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with pytest.raises(ValueError, match="stop"), folded(model, torch.rand(2, 3, 8, 8)):
        raise ValueError("stop")
    assert "forward" not in vars(model[0]) and "forward" not in vars(model[1])
