"""A network is divided at the border between frozen and trained layers, and both parts together are the network."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rootstock.backbones import depths
from rootstock.backbones.networks import build
from rootstock.config.architectures import Transform
from rootstock.config.params import Finetune, Stage
from rootstock.training.classifier import Classifier
from rootstock.training.division import UndividedError, divide
from rootstock.training.head import Head
from rootstock.training.unfreezing import optimiser_of

# Residual, inverted residual, inception and dense blocks; layer by layer; transformers of both libraries.
SIZES = {"resnet18": 64, "efficientnet_lite0": 64, "googlenet": 64, "densenet121": 64, "alexnet": 64, "lenet5": 32,
         "swin_t": 64, "timm/vit_tiny_patch16_224": 224}  # fmt: skip


def classifier(name: str, layer: str = "penultimate", size: int | None = None) -> Classifier:
    torch.manual_seed(0)
    size = size or SIZES[name]
    network = depths.cut(build(name, size), name, layer, "avg")
    head = Head(np.random.default_rng(0).normal(size=(5, depths.feature_width(network, size))).astype(np.float32),
                np.zeros(5, np.float32), list("abcde"), 1.0)  # fmt: skip
    return Classifier(network, Transform(size, size, "bilinear", (0.5,) * 3, (0.25,) * 3), head)


def unfreeze(model: Classifier, layers: str) -> Classifier:
    optimiser_of(model, Stage(unfreeze=layers, epochs=1, lr=1e-3), Finetune())
    return model.train()


def images(size: int, n: int = 2) -> Tensor:
    return torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("layers", ["head", "last_2_blocks"])
def test_logits_and_gradients_are_those_of_the_whole_network(name, layers):
    model, batch = unfreeze(classifier(name), layers), images(SIZES[name])
    model.eval()  # without dropout
    division = divide(model, batch)
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    whole = model(batch)
    expected = torch.autograd.grad(whole.square().sum(), list(trained.values()))
    activations = division.frozen(batch)
    assert not activations.requires_grad
    parts = division.trained(activations)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))
    for one, other in zip(torch.autograd.grad(parts.square().sum(), list(trained.values())), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
    assert {id(p) for p in division.trained.parameters() if p.requires_grad} == {id(p) for p in trained.values()}


@pytest.mark.parametrize("layer", ["mid", "high"])
def test_a_network_that_is_cut_at_a_layer_is_divided_below_it(layer):
    model, batch = unfreeze(classifier("efficientnet_lite0", layer), "last_block"), images(64)
    model.eval()
    division = divide(model, batch)
    torch.testing.assert_close(division.trained(division.frozen(batch)), model(batch), rtol=1e-4, atol=1e-4)


def test_the_trained_part_has_dropout_in_training_and_the_frozen_part_never(monkeypatch):
    model = classifier("resnet18")
    for block in (model.backbone.layer1[0], model.backbone.layer4[1]):
        block.register_forward_hook(lambda module, _, x: nn.functional.dropout(x, 0.5, module.training))
    unfreeze(model, "last_block")
    division = divide(model, images(64))
    once, again = (division.frozen(images(64)) for _ in range(2))
    assert torch.equal(once, again)
    division.trained.train()
    assert not torch.equal(division.trained(once), division.trained(once))
    division.trained.eval()
    assert torch.equal(division.trained(once), division.trained(once))


def test_frozen_blocks_have_no_dropout_in_a_whole_network_either():
    model = unfreeze(classifier("efficientnet_lite0"), "last_2_blocks")
    first, last = model.backbone.get_submodule("blocks.0.0"), model.backbone.get_submodule("blocks.6.0")
    assert not first.training and last.training


def test_the_fingerprint_depends_on_the_frozen_weights_and_the_border_alone():
    def fingerprint(model: Classifier, layers: str = "last_block") -> str:
        return divide(unfreeze(model, layers), images(64)).fingerprint()

    model = classifier("resnet18")
    first = fingerprint(model)
    with torch.no_grad():
        model.backbone.layer4[1].conv1.weight += 1  # trained
    assert fingerprint(model) == first
    assert fingerprint(model, "last_2_blocks") != first
    with torch.no_grad():
        model.backbone.layer1[0].bn1.running_mean += 1  # frozen, a buffer
    assert fingerprint(model) != first


class Untraceable(nn.Module):
    """Chooses by what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](x)
        return self.blocks[1](x if x.mean() > 0 else -x).mean((2, 3))


class TwoPaths(nn.Module):
    """A trained layer gets the output of two frozen ones."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3)])

    def forward(self, x: Tensor) -> Tensor:
        one = self.blocks[0](x)
        return (self.blocks[2](self.blocks[1](one)).mean((2, 3)) + self.blocks[2](one).mean((2, 3)))  # fmt: skip


class Pair(nn.Module):
    """A block that returns its feature map and a second value."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return self.other(self.conv(x)), x.shape[2]


class HandsOverPairs(nn.Module):
    """A trained block gets all that a frozen one returns."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Pair(), Takes()])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[1](self.blocks[0](x))


class Takes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, given: tuple[Tensor, int]) -> Tensor:
        return self.other(self.conv(given[0])).mean((2, 3)) * given[1]


@pytest.mark.parametrize(
    ("network", "layers", "why"),
    [
        (Untraceable(), "last_block", "its forward pass cannot be traced"),
        (TwoPaths(), "last_block", "its frozen part hands over 2 values"),
        (TwoPaths(), "all", "its first layers are trained"),
        (HandsOverPairs(), "last_block", "its frozen part hands over no tensor of a row per image"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_reason_and_stays_as_it_was(network, layers, why):
    head = Head(np.ones((2, 4), np.float32), np.zeros(2, np.float32), ["a", "b"], 1.0)
    model = Classifier(network, Transform(16, 16, "bilinear", (0.5,) * 3, (0.25,) * 3), head)
    unfreeze(model, layers)
    with pytest.raises(UndividedError, match=why):
        divide(model, images(16))
    assert model.training
