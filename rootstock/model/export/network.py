"""The network that is exported: from pixels to calibrated probabilities, so that nothing is left to do after it."""

from typing import Any

import torch
from torch import Tensor, nn

from rootstock.features.feature_extractor import Mirrored
from rootstock.model.model import Model
from rootstock.system import packages

INPUT, PROBABILITIES, NOVELTY = "images", "probabilities", "novelty"


class ExportedNetwork(nn.Module):
    """Map images (n, 3, size, size) uint8 to probabilities (n, k) float32 and, if the model has it, novelty (n,).

    Pixels are normalised and logits divided by the temperature inside.
    """

    temperature: Tensor
    center: Tensor
    scale: Tensor
    means: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        network = model.network
        self.normalise, self.head = network.normalise, network.head
        self.backbone = Mirrored(network.backbone) if model.spec.mirror else network.backbone
        self.register_buffer("temperature", torch.tensor(model.temperature, dtype=torch.float32))
        self.with_novelty = model.novelty is not None
        if model.novelty:
            for name in ("center", "scale", "means"):
                self.register_buffer(name, torch.tensor(getattr(model.novelty, name)))
        self.eval()

    @property
    def outputs(self) -> list[str]:
        """Return the names of the outputs, in order."""
        return [PROBABILITIES, NOVELTY] if self.with_novelty else [PROBABILITIES]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Classify a batch."""
        features = self.backbone(self.normalise(images)).float()
        logits: Tensor = self.head(features) / self.temperature
        probabilities = logits.sigmoid() if self.head.multi_label else logits.softmax(1)
        if not self.with_novelty:
            return probabilities
        standardised = nn.functional.normalize((features - self.center) * self.scale)
        return probabilities, 1 - (standardised @ self.means.T).amax(1)


def metadata(model: Model, digest: str) -> dict[str, Any]:
    """Return what a user of the exported file needs to know: the classes, in order, and how to prepare an image.

    Args:
        model: that is exported.
        digest: of its weights.
    """
    transform = model.spec.transform
    return {
        "classes": model.classes,
        "temperature": model.temperature,
        **({} if model.thresholds is None else {"thresholds": model.thresholds.tolist()}),
        "unknown_above": model.novelty.threshold if model.novelty else None,
        "transform": transform.as_dict(),
        "max_side": model.max_side,
        "value_range": model.value_range,
        "views": 2 if model.spec.mirror else 1,
        "model": digest,
        "made_by": f"Rootstock {packages.installed_versions('rootstock')['rootstock']}",
    }
