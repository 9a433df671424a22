"""Compare backbones on one dataset: accuracy as frozen feature extractors, by layer, and cost.

    candidates(params)                  which backbones, cut at which layer, frozen or trained from scratch
    measure(candidate, params, paths)   a Row: accuracy, size, speed; or the reason for a failure

Rows are measurements (images/s among them), not the output of a stage.
"""

import hashlib
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.backbones import backbones, sizes
from rootstock.backbones.backbones import Backbone
from rootstock.config import params
from rootstock.config.architectures import GROUPS, NONE, PENULTIMATE, architecture
from rootstock.dataset import tables
from rootstock.evaluation import compare_table, metrics, multi_label_metrics
from rootstock.evaluation.compare_table import FROZEN, SCRATCH, Row
from rootstock.features import extraction
from rootstock.features.feature_spec import FeatureSpec
from rootstock.features.reader import Features
from rootstock.model import scoring
from rootstock.model.model import Model
from rootstock.system import escape
from rootstock.system.causes import first_line
from rootstock.system.errors import DamagedError, RootstockError
from rootstock.system.files import verify
from rootstock.training import calibration, finetune, head, heads, thresholds
from rootstock.training.checkpoints import Epoch
from rootstock.training.classifier import Classifier
from rootstock.training.head import Head
from rootstock.training.split_images import SplitImages

log = logging.getLogger(__name__)
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Paths:
    """The dataset, the pipeline's features, and the comparison's own features and backbones."""

    images: Path
    dataset: Path
    features: Path
    own_features: Path
    own_backbones: Path


@dataclass(frozen=True)
class Candidate:
    """A backbone, the layer at which it is cut, and whether it is frozen or trained from scratch."""

    backbone: params.Backbone
    layer: str = PENULTIMATE
    trained: str = FROZEN

    @property
    def title(self) -> str:
        """Return the display name."""
        name = f"{self.backbone.name} {self.backbone.variant}" if self.backbone.variant else self.backbone.name
        return f"{name}, {'from scratch' if self.trained == SCRATCH else self.layer}"


def candidates(settings: params.Params) -> list[Candidate]:
    """List the candidates: every backbone at every layer, then those trained from scratch."""
    compare = settings.compare
    frozen = [
        Candidate(_backbone(name, settings, FROZEN), layer)
        for name in expand(compare.backbones)
        for layer in compare.depths
    ]
    return frozen + [Candidate(_backbone(name, settings, SCRATCH), trained=SCRATCH) for name in expand(compare.scratch)]


def expand(names: Iterable[str]) -> list[str]:
    """Replace group names by their members, without duplicates."""
    return list(dict.fromkeys(member for name in names for member in GROUPS.get(name, (name,))))


def _backbone(entry: str, settings: params.Params, trained: str) -> params.Backbone:
    name, _, variant = entry.partition(":")
    own = architecture(name, variant or None)
    size = (settings.compare.image_size or settings.backbone.image_size) if own.takes_any_size else None
    crop = settings.backbone.crop_fraction
    given = settings.backbone.weights if name == settings.backbone.name else "pretrained"
    weights = "random" if trained == SCRATCH or own.pretrained == NONE else given
    return params.Backbone(
        name=name, variant=cast(Any, variant or None), weights=weights, image_size=size, crop_fraction=crop
    )


def measure(candidate: Candidate, settings: params.Params, paths: Paths) -> tuple[Row, list[Epoch]]:
    """Measure a candidate; a failure is returned as a row with its reason.

    Returns:
        The row, and the epochs of a candidate trained from scratch.
    """
    start = time.perf_counter()
    pooling = settings.extract.pooling if candidate.layer != PENULTIMATE else ""
    row = Row(
        candidate.backbone.name, candidate.backbone.variant, candidate.trained, candidate.layer, pooling,
        image_size=candidate.backbone.image_size, data=compare_table.version_of(paths.dataset),
    )  # fmt: skip
    epochs: list[Epoch] = []
    try:
        found, epochs = _measured(candidate, settings, paths)
    except (RootstockError, RuntimeError, MemoryError) as error:  # torch's out of memory is a RuntimeError
        found = {"reason": first_line(error) or type(error).__name__}
    return Row(**{**asdict(row), **found, "seconds": round(time.perf_counter() - start, 2)}), epochs


def _measured(candidate: Candidate, settings: params.Params, paths: Paths) -> tuple[dict[str, Any], list[Epoch]]:
    extract = settings.extract.model_copy(update={"layer": candidate.layer, "views": 0})
    backbone = backbones.load(_prepared(candidate, settings, paths), extract.layer, extract.pooling)
    manifest = tables.load_manifest(paths.dataset)
    ordered = manifest.sort_values(["shard", "offset"])
    splits = {split: ordered[ordered["split"] == split] for split in ("train", "val")}
    classes = tables.classes_of(manifest)
    labels = {split: tables.labels_of_rows(rows, classes) for split, rows in splits.items()}
    size = cost(backbone, extract)
    epochs: list[Epoch] = []
    if candidate.trained == SCRATCH:
        logits, epochs = _from_scratch(backbone, splits, classes, settings, paths)
        own: dict[str, Any] = {}
    else:
        done = extraction.extract(backbone, extract, paths.images, paths.own_features, fallback_cache=paths.features)
        fitted, logits = _probe(paths.own_features / done.key, splits, classes, settings)
        own = {"l2": fitted.l2, "computed": done.computed}
        extract = extract.model_copy(update={"engine": done.engine})
    temperature = calibration.fit_temperature(logits["val"], labels["val"])
    multi_label = tables.is_multi_label(manifest)
    probabilities = calibration.probabilities(logits["val"], temperature, multi_label=multi_label)
    domains, groups = splits["val"]["domain"].to_numpy(str), tables.group_numbers(splits["val"])
    if multi_label:
        cuts = thresholds.choose(probabilities, labels["val"])
        scored = multi_label_metrics.score(labels["val"], probabilities, cuts, domains, classes, groups)
    else:
        scored = metrics.score(labels["val"], probabilities, domains, classes, groups=groups)
    found = {
        "image_size": backbone.transform.size,
        "origin": backbone.description["origin"],
        "width": backbone.width,
        **size,
        "feature_bytes": backbone.width * np.dtype(extract.dtype).itemsize,
        "images_per_second": extraction.speed(backbone, extract, paths.images),
        **own,
        "accuracy": scored["accuracy"]["value"],
        "accuracy_low": scored["accuracy"].get("low"),
        "accuracy_high": scored["accuracy"].get("high"),
        "log_loss": scored["log_loss"]["value"],
        "train_images": len(labels["train"]),
        "val_images": len(labels["val"]),
    }
    return found, epochs


def _prepared(candidate: Candidate, settings: params.Params, paths: Paths) -> Path:
    """Return the folder of the prepared backbone, reusing that of an earlier comparison."""
    name = hashlib.sha256(f"{candidate.backbone.model_dump_json()} {settings.seed}".encode()).hexdigest()[:12]
    folder = paths.own_backbones / f"{candidate.backbone.name.replace('/', '-')[: escape.LONGEST]}-{name}"
    if not _is_intact(folder):
        backbones.prepare(candidate.backbone, settings.seed, folder)
    return folder


def _is_intact(folder: Path) -> bool:
    if not (folder / backbones.DESCRIPTION).exists():
        return False
    try:
        verify(folder / backbones.WEIGHTS, backbones.describe(folder)["digest"])
    except DamagedError as error:
        log.warning("%s: the backbone of an earlier comparison is damaged; preparing it again (%s)", folder, error)
        return False
    return True


def cost(backbone: Backbone, extract: params.Extract) -> dict[str, Any]:
    """Return parameters and multiply-accumulates per image up to the layer."""
    described = backbone.description
    known = described if extract.layer == PENULTIMATE else described["depths"].get(extract.layer)
    if known is None:  # a module by its own name
        known = sizes.cost(backbone.network, backbone.transform.size)
    return {"parameters": known["parameters"], "macs": known["macs"]}


def _probe(
    folder: Path, splits: dict[str, pd.DataFrame], classes: list[str], settings: params.Params
) -> tuple[Head, dict[str, Logits]]:
    train, val = (Features(folder, splits[split], classes) for split in ("train", "val"))
    fitted = heads.fit(train, val, classes, settings.head, tables.group_numbers(splits["val"]), "train_head").head
    return fitted, {"val": head.scores(fitted, val)}


def _from_scratch(
    backbone: Backbone, splits: dict[str, pd.DataFrame], classes: list[str], settings: params.Params, paths: Paths
) -> tuple[dict[str, Logits], list[Epoch]]:
    """Train all layers from random weights with fine-tuning's loop and batch-norm statistics of the batch."""
    compare = settings.compare
    recipe = settings.finetune.model_copy(
        update={
            "stages": (params.Stage(unfreeze="all", epochs=compare.epochs, lr=compare.lr),),
            "layer_decay": 1.0,
            "augment": compare.augment,
        }
    )
    weight, bias = np.zeros((len(classes), backbone.width), np.float32), np.zeros(len(classes), np.float32)
    empty = Head(weight, bias, classes, 0.0, multi_label=tables.is_multi_label(splits["train"]))
    model = Classifier(backbone.network, backbone.transform, empty, frozen_statistics=False)
    train, val = (SplitImages(splits[split], paths.images, classes=tuple(classes)) for split in ("train", "val"))
    identity = f"{backbone.digest} {compare_table.version_of(paths.dataset)} {recipe.recipe()} {settings.seed}"
    checkpoint = paths.own_backbones / f"{hashlib.sha256(identity.encode()).hexdigest()[:12]}.pt"
    history = finetune.fine_tune(
        model, backbone.transform, train, val, recipe, settings.seed, checkpoint, identity
    ).history
    trained = Model(model, FeatureSpec(backbone.transform), classes)
    logits = {"val": scoring.score(trained, splits["val"], paths.images).logits}
    checkpoint.unlink(missing_ok=True)
    return logits, history
