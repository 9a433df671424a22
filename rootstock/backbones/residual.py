"""Residual and plain networks of 34 layers, written to be read alongside their paper.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. CVPR 2016, sections 3.3 and 4.1.

    plain34       every two layers F(x), one after the other: top-1 error on ImageNet 28.54 %
    shortcut_a    F(x) + x; where the shape changes, every second pixel of x, with zeros for new channels: 25.03 %
    shortcut_b    F(x) + x; where the shape changes, F(x) + W x with a 1x1 convolution W: 24.52 % (torchvision's)
    shortcut_c    F(x) + W x everywhere: 24.19 %

(Table 3: 10-crop validation error.) Plain, A and B differ only in the shortcuts.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet, conv1x1, resnet34

LAYERS = [3, 4, 6, 3]  # blocks of two layers each; 34 layers with the first convolution and the output


class PlainBlock(BasicBlock):
    """Two layers without a shortcut."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  BasicBlock's arguments
        super().__init__(*arguments, **options)
        self.downsample = None

    def forward(self, x: Tensor) -> Tensor:
        """Compute relu(F(x)) of maps (n, c, h, w)."""
        inner = self.relu(self.bn1(self.conv1(x)))
        outer: Tensor = self.relu(self.bn2(self.conv2(inner)))
        return outer


class ZeroPadded(nn.Module):
    """Option A: every second pixel, and zeros for new channels."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        """Match maps (n, c, h, w) to the block's output (n, c + new, h / stride, w / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def plain34() -> ResNet:
    """Build ResNet-34 without its shortcuts."""
    return ResNet(PlainBlock, LAYERS)


def shortcuts34(variant: str) -> ResNet:
    """Build ResNet-34 with one of the paper's three options for its shortcuts."""
    network = resnet34()
    if variant == "shortcut_a":
        _replace(network, lambda block: _padded(block) if block.downsample else None)
    if variant == "shortcut_c":
        _replace(network, _projected)
    return network


def _replace(network: ResNet, shortcut: Callable[[BasicBlock], nn.Module | None]) -> None:
    for block in network.modules():
        if isinstance(block, BasicBlock):
            block.downsample = shortcut(block)


def _padded(block: BasicBlock) -> nn.Module:
    return ZeroPadded(block.stride, block.conv2.out_channels - block.conv1.in_channels)


def _projected(block: BasicBlock) -> nn.Module:
    if block.downsample:
        return nn.Sequential(*block.downsample)
    projection = conv1x1(block.conv1.in_channels, block.conv2.out_channels, block.stride)
    nn.init.kaiming_normal_(projection.weight, mode="fan_out", nonlinearity="relu")  # as in the rest of ResNet
    return nn.Sequential(projection, nn.BatchNorm2d(block.conv2.out_channels))
