"""LeNet-5, written to be read alongside its paper.

LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition. Proc. IEEE 86(11), 1998, II.B.

    input 32x32 ──C1──> 6@28x28 ──S2──> 6@14x14 ──C3──> 16@10x10 ──S4──> 16@5x5 ──C5──> 120 ──F6──> 84 ──> classes

Trainable parameters, layer by layer (C1 .. F6; the paper counts 60,000 in all):

    original          156 + 12 + 1,516 + 32 + 48,120 + 10,164 = 60,000    with a linear output of 10 classes 60,850
    average_pooling   156 +  0 + 2,416 +  0 + 48,120 + 10,164 = 60,856    with a linear output of 10 classes 61,706
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Table I of the paper: the maps of S2 that each of the 16 maps of C3 is connected to.
C3_SEES = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5),
)  # fmt: skip
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: the paper's images are grey


class Squash(nn.Module):
    """The paper's squashing function, A tanh(S a): f(±1) = ±1, the points of maximum curvature (appendix A)."""

    def forward(self, a: Tensor) -> Tensor:
        """Apply the squashing function."""
        return 1.7159 * torch.tanh(2 / 3 * a)


class Subsample(nn.Module):
    """Trainable sub-sampling: the sum of four neighbours, times one weight per map, plus one bias per map."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(maps))
        self.bias = nn.Parameter(torch.zeros(maps))

    def forward(self, maps: Tensor) -> Tensor:
        """Halve maps (n, maps, h, w)."""
        summed = 4 * F.avg_pool2d(maps, 2)
        return summed * self.weight[:, None, None] + self.bias[:, None, None]


class PartlyConnected(nn.Module):
    """A 5x5 convolution with a connection table: each output map sees only some input maps, which breaks symmetry."""

    def __init__(self, sees: tuple[tuple[int, ...], ...], maps_below: int) -> None:
        super().__init__()
        self.shape = (len(sees), maps_below, 5, 5)
        self.above = [above for above, below in enumerate(sees) for _ in below]
        self.below = [each for below in sees for each in below]
        self.weight = nn.Parameter(torch.empty(len(self.above), 5, 5))
        self.bias = nn.Parameter(torch.zeros(len(sees)))

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve maps (n, below, h, w) to (n, above, h - 4, w - 4)."""
        everywhere = maps.new_zeros(self.shape, dtype=self.weight.dtype)
        everywhere[self.above, self.below] = self.weight
        return F.conv2d(maps, everywhere.to(maps.dtype), self.bias.to(maps.dtype))


class LeNet5(nn.Module):
    """RGB images (n, 3, 32, 32) to logits (n, classes).

    The paper's output compares F6 with a drawn 7x12 bitmap of each class (radial basis functions, not trained). That
    requires ten known characters, so the output here is linear, with one unit per class.

    Args:
        variant: average_pooling replaces trainable sub-sampling by average pooling, and connects C3 fully.
        classes: number of logits.
    """

    def __init__(self, variant: str | None = None, classes: int = 1000) -> None:
        super().__init__()
        is_average = variant == "average_pooling"

        def halve(maps: int) -> nn.Module:
            return nn.AvgPool2d(2) if is_average else nn.Sequential(Subsample(maps), Squash())

        self.c1 = nn.Sequential(nn.Conv2d(1, 6, 5), Squash())
        self.s2 = halve(6)
        self.c3 = nn.Sequential(nn.Conv2d(6, 16, 5) if is_average else PartlyConnected(C3_SEES, 6), Squash())
        self.s4 = halve(16)
        self.c5 = nn.Sequential(nn.Conv2d(16, 120, 5), Squash())  # 5x5 on 5x5: fully connected
        self.f6 = nn.Sequential(nn.Linear(120, 84), Squash())
        self.output = nn.Linear(84, classes)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of a batch."""
        luma = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
        grey = (images * luma[:, None, None]).sum(1, keepdim=True)
        maps = self.c5(self.s4(self.c3(self.s2(self.c1(grey)))))
        scores: Tensor = self.output(self.f6(maps.flatten(1)))
        return scores


def _initialise(module: nn.Module) -> None:
    """Initialise weights uniformly within ±2.4 / fan-in (appendix A of the paper)."""
    match module:
        case nn.Conv2d() | nn.Linear():
            inputs = module.weight[0].numel()
            nn.init.zeros_(module.bias) if module.bias is not None else None
        case PartlyConnected():
            inputs = 25 * max(map(len, C3_SEES))
        case Subsample():
            nn.init.constant_(module.weight, 1 / 4)  # starts as the average
            return
        case _:
            return
    nn.init.uniform_(module.weight, -2.4 / inputs, 2.4 / inputs)
