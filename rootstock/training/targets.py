"""What a mini-batch is trained towards, and the loss of its logits.

The target of images of one class each is (n,) int64, NO_CLASS for an image that does not count; where images are
mixed, shares of the classes (n, k) float32. That of images with any number of classes is (n, k + 1) float32: which of
them each image has, and last whether it counts.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

NO_CLASS = -100  # torch's cross-entropy ignores it


def of_labels(labels: Tensor) -> Tensor:
    """Return the target of images that all count, from class indices (n,), or which classes each has (n, k) bool."""
    return labels if labels.dim() == 1 else torch.cat([labels, torch.ones_like(labels[:, :1])], 1).float()


def without(target: Tensor, images: slice) -> Tensor:
    """Return a target in which some images do not count."""
    target = target.clone()
    target[images] = 0 if target.is_floating_point() else NO_CLASS
    return target


def padded(target: Tensor, more: int) -> Tensor:
    """Add images that do not count."""
    return F.pad(target, (0, 0, 0, more)) if target.is_floating_point() else F.pad(target, (0, more), value=NO_CLASS)


def counted(target: Tensor, *, multi_label: bool = False) -> Tensor:
    """Return 1 for images (n,) that count and 0 for others, or shares where images are mixed."""
    if multi_label:
        return target[:, -1]
    return target.sum(1) if target.is_floating_point() else (target != NO_CLASS).float()


def losses(logits: Tensor, target: Tensor, label_smoothing: float = 0.0, *, multi_label: bool = False) -> Tensor:
    """Return the log loss of each image (n,); of any number of classes, the mean over these."""
    if not multi_label:
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none", ignore_index=NO_CLASS)
    has = target[:, :-1] / target[:, -1:].clamp(min=torch.finfo(target.dtype).tiny)
    smoothed = has * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none").mean(1)


def accuracies(logits: Tensor, target: Tensor, *, multi_label: bool = False) -> Tensor:
    """Return the accuracy of each image (n,), as `outcomes.accuracies` does."""
    if not multi_label:
        return (logits.argmax(1) == target).float()
    predicted, has = logits > 0, target[:, :-1] > 0
    either = (predicted | has).sum(1)
    return torch.where(either > 0, (predicted & has).sum(1) / either.clamp(min=1), 1.0)
