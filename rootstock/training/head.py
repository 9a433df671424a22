"""The linear head on frozen features: what it predicts, and how it is saved and loaded."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax

from rootstock.backbones.depths import Pooling
from rootstock.config.architectures import PENULTIMATE
from rootstock.features.reader import Features
from rootstock.system.files import read_json, reading, replacing_folder, sha256, verify, write

WEIGHTS, DESCRIPTION = "head.safetensors", "head.json"
DESCRIBED = ("classes", "l2", "path", "layer", "pooling", "warnings")


@dataclass(frozen=True)
class Head:
    """A linear classifier on unstandardised features; standardisation is folded into its weights.

    weight (k, d) float32, bias (k,) float32; `path` has one entry per L2 strength tried; `layer` and `pooling` say
    where the backbone is cut; `warnings` report a search that ended at a limit.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    classes: list[str]
    l2: float
    path: list[dict[str, float]] = field(default_factory=list)
    layer: str = PENULTIMATE
    pooling: Pooling = "avg"
    warnings: list[str] = field(default_factory=list)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits (n, k) float32 of features (n, d)."""
        scores: NDArray[np.float32] = features @ self.weight.T + self.bias
        return scores


def evaluate(head: Head, features: Features) -> tuple[float, float]:
    """Compute mean log loss (nats) and accuracy of a head."""
    loss, correct = 0.0, 0
    for x, labels in features:
        logits = head.logits(x).astype(np.float64)
        loss -= float(log_softmax(logits, axis=1)[np.arange(len(labels)), labels].sum())
        correct += int((logits.argmax(1) == labels).sum())
    return loss / len(features), correct / len(features)


def save(head: Head, folder: Path, facts: dict[str, Any]) -> None:
    """Save a head: `head.safetensors` (weight, bias) and `head.json` (classes, strength, path, and `facts`)."""
    with replacing_folder(folder) as temporary:
        save_file({"weight": head.weight, "bias": head.bias}, temporary / WEIGHTS)
        digest = {"digest": sha256(temporary / WEIGHTS)}
        described = {name: getattr(head, name) for name in DESCRIBED} | digest | facts
        write(temporary / DESCRIPTION, json.dumps(described, indent=2, ensure_ascii=False) + "\n")


def load(folder: Path) -> Head:
    """Load a head.

    Raises:
        DamagedError: a file is damaged or does not match its digest.
    """
    described = read_json(folder / DESCRIPTION)
    with reading(folder / DESCRIPTION):
        named = {name: described[name] for name in DESCRIBED}
        digest, classes = described["digest"], len(described["classes"])
        [entry["l2"] for entry in described["path"]]  # raises if the path is damaged
    verify(folder / WEIGHTS, digest)
    with reading(folder / WEIGHTS):
        tensors = load_file(folder / WEIGHTS)
        if len(tensors["weight"]) != classes or tensors["bias"].shape != (classes,):
            raise ValueError(f"its shape does not fit {classes} classes")
        return Head(tensors["weight"], tensors["bias"], **named)
