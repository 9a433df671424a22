"""Mixed mini-batches: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), as torchvision has them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rootstock.config.params import Regularization
from rootstock.training.targets import NO_CLASS


class Mixing:
    """Blend each image of a mini-batch with another, or cut a rectangle of another into it, and mix their labels alike.

    Random numbers are those of torch's global generator, which training seeds and checkpoints keep.

    Args:
        settings: alpha of both; with both, one of them at random for each mini-batch.
        classes: number of classes.
    """

    def __init__(self, settings: Regularization, classes: int) -> None:
        self.classes = classes
        self.ways: list[Callable[..., tuple[Tensor, Tensor]]] = []
        if settings.mixup or settings.cutmix:
            from torchvision.transforms import v2  # takes 1.5 s to import

            both = ((v2.MixUp, settings.mixup), (v2.CutMix, settings.cutmix))
            self.ways = [way(alpha=alpha) for way, alpha in both if alpha]

    def __bool__(self) -> bool:
        """Whether anything is mixed."""
        return bool(self.ways)

    def __call__(self, batch: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mix pixels (n, 3, size, size) of a target: class indices (n,), or of any number of classes (n, k + 1).

        Returns:
            Pixels as float32, and shares of the classes (n, k) float32, which add up to the share of images that count;
            or, of any number of classes, a target of the same shape.
        """
        shares = target
        if not target.is_floating_point():
            shares = F.one_hot(target.clamp(min=0), self.classes).float() * (target != NO_CLASS)[:, None]
        way = self.ways[int(torch.randint(len(self.ways), ()))]
        return way(batch.float(), shares)
