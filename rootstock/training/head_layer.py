"""The head as a layer of a network, so that it is fine-tuned, saved and exported with its backbone."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rootstock.training.head import NEIGHBOUR_TEMPERATURE, SMOOTHING, Head, to_tensors


class HeadLayer(nn.Module):
    """Map features (n, d) float32 to the logits (n, k) of a head.

    Weight and bias are trained; the centre, and the classes of nearest neighbours, are not.
    """

    center: Tensor | None
    exemplar_classes: Tensor | None

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.kind, self.neighbours, self.multi_label = head.kind, head.neighbours, head.multi_label
        tensors = {name: torch.tensor(values) for name, values in to_tensors(head).items()}
        self.weight, self.bias = (nn.Parameter(tensors[name]) for name in ("weight", "bias"))
        for name in ("center", "exemplar_classes"):
            self.register_buffer(name, tensors.get(name))

    @property
    def in_features(self) -> int:
        """Return the number of features, d."""
        return int(self.weight.shape[1])

    def forward(self, features: Tensor) -> Tensor:
        """Compute the logits of a batch."""
        if self.center is not None:
            features = functional.normalize(features - self.center)
        if self.exemplar_classes is None:
            return functional.linear(features, self.weight, self.bias)
        similarity, nearest = functional.linear(features, self.weight).topk(self.neighbours)
        votes = ((similarity - similarity[:, :1]) / NEIGHBOUR_TEMPERATURE).exp()
        shares = votes.new_zeros(features.shape[0], len(self.bias)).scatter_add_(
            1, self.exemplar_classes[nearest], votes
        )
        return (shares / shares.sum(1, keepdim=True) + SMOOTHING).log() + self.bias

    def scores(self, features: Tensor) -> Tensor:
        """Compute scores (n, k) whose gradients tell what speaks for a class, for features (n, d) float32.

        They are the logits; of nearest neighbours the cosine similarity to the nearest training image of each class, as
        the gradient of their votes vanishes where all are for one class.
        """
        if self.exemplar_classes is None:
            logits: Tensor = self(features)
            return logits
        if self.center is not None:
            features = functional.normalize(features - self.center)
        similarity = functional.linear(features, self.weight)
        lowest = similarity.new_full((len(features), len(self.bias)), -1.0)
        return lowest.scatter_reduce(1, self.exemplar_classes.expand(len(features), -1), similarity, "amax")

    def to_head(self, classes: list[str]) -> Head:
        """Return the head that this layer computes."""
        arrays = {name: values.detach().cpu().numpy() for name, values in self.state_dict().items()}
        return Head(
            **arrays, classes=classes, l2=0.0, kind=self.kind, neighbours=self.neighbours, multi_label=self.multi_label
        )


def describe(head: HeadLayer) -> dict[str, Any]:
    """Return what `empty` needs to build a layer of the same shape."""
    exemplars = 0 if head.exemplar_classes is None else len(head.exemplar_classes)
    return {
        "kind": head.kind,
        "normalised": head.center is not None,
        "exemplars": exemplars,
        "neighbours": head.neighbours,
        **({"multi_label": True} if head.multi_label else {}),
    }


def empty(described: dict[str, Any], classes: list[str], width: int) -> Head:
    """Build a head of zeros, for weights to be loaded into; of earlier versions nothing is described: it is linear."""
    exemplars = int(described.get("exemplars", 0))
    return Head(
        weight=np.zeros((exemplars or len(classes), width), np.float32),
        bias=np.zeros(len(classes), np.float32),
        classes=classes,
        l2=0.0,
        center=np.zeros(width, np.float32) if described.get("normalised") else None,
        exemplar_classes=np.zeros(exemplars, np.int64) if exemplars else None,
        kind=described.get("kind", "logistic"),
        neighbours=int(described.get("neighbours", 0)),
        multi_label=bool(described.get("multi_label", False)),
    )
