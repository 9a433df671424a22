"""The head on frozen features: what it predicts, and how it is saved and loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from rootstock.backbones.depths import Pooling
from rootstock.config.architectures import PENULTIMATE
from rootstock.features.reader import Features
from rootstock.system.files import read_json, reading, replacing_folder, sha256, verify, write
from rootstock.training import outcomes
from rootstock.training.class_weights import image_weights

WEIGHTS, DESCRIPTION = "head.safetensors", "head.json"
LINEAR = "linear"  # subfolder: the best linear head, where nearest neighbours were chosen
DESCRIBED = ("classes", "l2", "path", "layer", "pooling", "warnings")
CHOSEN = ("kind", "neighbours", "tried", "why")  # not in files of earlier versions
MULTI_LABEL = "multi_label"  # only in those of such a head
Kind = Literal["logistic", "ridge", "prototype", "knn"]
Array = NDArray[np.float32]

# Nearest neighbours vote with weights exp(similarity / 0.07), as in DINO (Caron et al. 2021, section 4.1).
NEIGHBOUR_TEMPERATURE = 0.07
SMOOTHING = 1e-3  # share of the votes that every class has, so that no probability is 0
QUERIES = 1024  # rows at a time


@dataclass(frozen=True)
class Head:
    """A classifier on features (n, d): linear, or a vote of nearest neighbours.

    A linear head has weight (k, d) float32 and bias (k,) float32. Nearest neighbours have the training features (m, d)
    as weight, and `exemplar_classes` (m,) int64 tells the class of each. With `center` (d,) float32, features are
    centred and scaled to unit length first. `path` has one entry per setting tried, such as L2 strengths; `tried` one
    per kind of head, and `why` is the reason for the choice; `layer` and `pooling` say where the backbone is cut;
    `warnings` report a search that ended at a limit; with `multi_label`, an image may have any number of classes: each
    logit is one of its own, a sigmoid's.
    """

    weight: Array
    bias: Array
    classes: list[str]
    l2: float
    path: list[dict[str, float]] = field(default_factory=list)
    layer: str = PENULTIMATE
    pooling: Pooling = "avg"
    warnings: list[str] = field(default_factory=list)
    multi_label: bool = False
    kind: Kind = "logistic"
    center: Array | None = None
    exemplar_classes: NDArray[np.int64] | None = None
    neighbours: int = 0
    tried: list[dict[str, Any]] = field(default_factory=list)
    why: str = ""

    def logits(self, features: Array) -> Array:
        """Return the logits (n, k) float32 of features (n, d)."""
        if self.exemplar_classes is not None:
            starts = range(0, len(features), QUERIES)
            parts = [self._votes(self._prepared(features[start : start + QUERIES])) for start in starts]
            return np.concatenate(parts or [np.empty((0, len(self.bias)), np.float32)])
        scores: Array = self._prepared(features) @ self.weight.T + self.bias
        return scores

    @property
    def val_accuracy(self) -> float:
        """Return the validation accuracy of the chosen setting."""
        return min(self.path, key=lambda entry: entry["val_log_loss"])["val_accuracy"]

    def describe(self) -> str:
        """Describe the kind and its chosen setting in a phrase."""
        return {
            "logistic": f"L2 {self.l2:g}",
            "ridge": f"ridge regression, L2 {self.l2:g}",
            "prototype": "class prototypes",
            "knn": f"{self.neighbours} nearest neighbours",
        }[self.kind]

    def _prepared(self, features: Array) -> Array:
        return features if self.center is None else normalised(features - self.center)

    def _votes(self, features: Array) -> Array:
        """Return the logarithm of each class's share of the votes of the nearest neighbours (n, k)."""
        assert self.exemplar_classes is not None
        similarity = features @ self.weight.T
        nearest = np.argpartition(-similarity, self.neighbours - 1, axis=1)[:, : self.neighbours]
        found = np.take_along_axis(similarity, nearest, axis=1)
        votes = np.exp((found - found.max(axis=1, keepdims=True)) / NEIGHBOUR_TEMPERATURE)
        shares = np.zeros((len(features), len(self.bias)), np.float32)
        np.add.at(shares, (np.arange(len(features))[:, None], self.exemplar_classes[nearest]), votes)
        scores: Array = np.log(shares / shares.sum(axis=1, keepdims=True) + SMOOTHING) + self.bias
        return scores


def normalised(features: Array) -> Array:
    """Scale features (n, d) to unit length; zeros stay as they are."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: Array = features / np.maximum(length, np.finfo(np.float32).tiny)
    return scaled


def scores(head: Head, features: Features) -> Array:
    """Return the logits (n, k) float32 of cached features, in their order."""
    return np.concatenate([head.logits(x) for x, _ in features])


def evaluate(head: Head, features: Features, weights: Array | None = None) -> tuple[float, float]:
    """Compute mean log loss (nats) and accuracy of a head; with weights (k,) of classes, images count by them.

    Of any number of classes, they are those of training/outcomes.py.
    """
    counted = image_weights(weights, features.labels)
    loss, correct, done = 0.0, 0.0, 0
    for x, labels in features:
        logits, own = head.logits(x), counted[done : done + len(labels)]
        loss += float(own @ outcomes.log_losses(logits, labels))
        correct += float(own @ outcomes.accuracies(logits, labels))
        done += len(labels)
    return loss / len(features), correct / len(features)


def to_tensors(head: Head) -> dict[str, NDArray[Any]]:
    """Return the arrays of a head by name."""
    arrays = {
        "weight": head.weight,
        "bias": head.bias,
        "center": head.center,
        "exemplar_classes": head.exemplar_classes,
    }
    return {name: values for name, values in arrays.items() if values is not None}


def save(head: Head, folder: Path, facts: dict[str, Any], linear: Head | None = None) -> None:
    """Save a head: `head.safetensors` and `head.json` (classes, strength, path, choice, and `facts`).

    Args:
        head: to save.
        folder: target, replaced as a whole.
        facts: for `head.json`.
        linear: the head from which fine-tuning starts if `head` is a vote of nearest neighbours.
    """
    with replacing_folder(folder) as temporary:
        _write(head, temporary, facts)
        if linear:
            (temporary / LINEAR).mkdir()
            _write(linear, temporary / LINEAR, facts)


def _write(head: Head, folder: Path, facts: Mapping[str, Any]) -> None:
    save_file(to_tensors(head), folder / WEIGHTS)
    described = {name: getattr(head, name) for name in DESCRIBED} | {"digest": sha256(folder / WEIGHTS)} | dict(facts)
    described |= {name: getattr(head, name) for name in CHOSEN}
    described |= {MULTI_LABEL: True} if head.multi_label else {}
    write(folder / DESCRIPTION, json.dumps(described, indent=2, ensure_ascii=False) + "\n")


def load(folder: Path) -> Head:
    """Load a head.

    Raises:
        DamagedError: a file is damaged or does not match its digest.
    """
    described = read_json(folder / DESCRIPTION)
    with reading(folder / DESCRIPTION):
        named = {name: described[name] for name in DESCRIBED}
        chosen = {name: described[name] for name in (*CHOSEN, MULTI_LABEL) if name in described}
        digest, classes = described["digest"], len(described["classes"])
        [entry["val_log_loss"] for entry in described["path"]]  # raises if the path is damaged
    verify(folder / WEIGHTS, digest)
    with reading(folder / WEIGHTS):
        tensors = load_file(folder / WEIGHTS)
        rows = len(tensors.get("exemplar_classes", tensors["bias"]))
        if len(tensors["weight"]) != rows or tensors["bias"].shape != (classes,):
            raise ValueError(f"its shape does not fit {classes} classes")
        described = {**tensors, **named, **chosen}
        return Head(**described)


def folder_of_linear(folder: Path) -> Path:
    """Return the folder of the head from which fine-tuning starts: the head's own, if it is linear."""
    return folder / LINEAR if (folder / LINEAR).exists() else folder


def load_linear(folder: Path) -> Head:
    """Load the head from which fine-tuning starts."""
    return load(folder_of_linear(folder))
