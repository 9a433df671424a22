"""Backbones compared on one data set: what each is worth as a frozen feature extractor, by depth, and what it costs.

    candidates(params)                  which backbones, where cut, frozen or trained from scratch
    try_out(candidate, params, places)  a Row: accuracy, size, speed; or the reason why there is none

A row is a measurement, not a stage's output: it holds images a second.
"""

import hashlib
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rootstock.backbones import backbones, sizes
from rootstock.backbones.backbones import Backbone
from rootstock.config import params
from rootstock.config.architectures import GROUPS, NONE, PENULTIMATE, architecture
from rootstock.dataset import tables
from rootstock.dataset.shards import Reader
from rootstock.evaluation import metrics
from rootstock.features import extraction
from rootstock.features.reader import Features
from rootstock.images import loader
from rootstock.system import digests, escape
from rootstock.system.errors import DamagedError, RootstockError
from rootstock.system.files import digest, reading, replacing, verify
from rootstock.training import calibration, finetune, head
from rootstock.training.classifier import Classifier
from rootstock.training.finetune import Epoch, SplitImages
from rootstock.training.head import Head

log = logging.getLogger(__name__)
FROZEN, SCRATCH = "frozen", "scratch"
CANDIDATE = ["backbone", "variant", "trained", "layer", "pooling", "data"]  # columns that say which one a row is of
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Places:
    """Where everything is: the data set, the pipeline's features, and what a comparison keeps for itself."""

    images: Path
    dataset: Path
    features: Path
    tried_features: Path
    tried_backbones: Path


@dataclass(frozen=True)
class Candidate:
    """A backbone, where it is cut, and whether its features are frozen or all of it is trained from scratch."""

    backbone: params.Backbone
    layer: str = PENULTIMATE
    trained: str = FROZEN

    @property
    def title(self) -> str:
        """Name it as a person would."""
        named = f"{self.backbone.name} {self.backbone.variant}" if self.backbone.variant else self.backbone.name
        return f"{named}, {'from scratch' if self.trained == SCRATCH else self.layer}"


@dataclass(frozen=True)
class Row:
    """How a candidate did; of one that failed, `reason` says why and the figures are None.

    Accuracy and log loss are of the test images (low, high: 95 % interval), parameters and multiply-accumulates (one
    image) up to the layer, without any classification layer; `feature_bytes` is an image's.
    """

    backbone: str
    variant: str | None
    trained: str
    layer: str
    pooling: str
    image_size: int | None = None
    origin: str | None = None
    width: int | None = None
    parameters: int | None = None
    macs: int | None = None
    feature_bytes: int | None = None
    images_per_second: float | None = None
    l2: float | None = None
    val_accuracy: float | None = None
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    log_loss: float | None = None
    train_images: int | None = None
    test_images: int | None = None
    computed: int | None = None  # images that went through the backbone for it; the others' features were there
    seconds: float | None = None
    data: str = ""  # names the data set's version
    reason: str = ""


def candidates(settings: params.Params) -> list[Candidate]:
    """List what is to be compared: every backbone at every depth, then what is trained from scratch."""
    asked = settings.compare
    frozen = [
        Candidate(_backbone(name, settings, FROZEN), layer)
        for name in expand(asked.backbones)
        for layer in asked.depths
    ]
    return frozen + [Candidate(_backbone(name, settings, SCRATCH), trained=SCRATCH) for name in expand(asked.scratch)]


def expand(names: Iterable[str]) -> list[str]:
    """Put the members of a group in the place of its name, each once."""
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


def try_out(candidate: Candidate, settings: params.Params, places: Places) -> tuple[Row, list[Epoch]]:
    """Find out what a candidate is worth; one that fails is a row with its reason.

    Returns:
        The row, and of one that was trained from scratch its epochs.
    """
    start = time.perf_counter()
    pooling = settings.extract.pooling if candidate.layer != PENULTIMATE else ""
    row = Row(
        candidate.backbone.name, candidate.backbone.variant, candidate.trained, candidate.layer, pooling,
        image_size=candidate.backbone.image_size, data=version_of(places.dataset),
    )  # fmt: skip
    epochs: list[Epoch] = []
    try:
        found, epochs = _measured(candidate, settings, places)
    except (RootstockError, RuntimeError, MemoryError) as error:  # torch's out of memory is a RuntimeError
        found = {"reason": str(error).strip().splitlines()[0]}
    return Row(**{**asdict(row), **found, "seconds": round(time.perf_counter() - start, 2)}), epochs


def version_of(dataset_dir: Path) -> str:
    """Name the version of a data set."""
    return digest(tables.files_of(dataset_dir / tables.MANIFEST))[:12]


def _measured(candidate: Candidate, settings: params.Params, places: Places) -> tuple[dict[str, Any], list[Epoch]]:
    extract = settings.extract.model_copy(update={"layer": candidate.layer, "views": 0})
    backbone = backbones.load(_prepared(candidate, settings, places), extract.layer, extract.pooling)
    manifest = tables.load_manifest(places.dataset)
    ordered = manifest.sort_values(["shard", "offset"])
    splits = {split: ordered[ordered["split"] == split] for split in ("train", "val", "test")}
    labels = {split: rows["class_index"].to_numpy(np.int64) for split, rows in splits.items()}
    classes = tables.classes_of(manifest)
    size = cost(backbone, extract)
    epochs: list[Epoch] = []
    if candidate.trained == SCRATCH:
        logits, epochs = _from_scratch(backbone, splits, classes, settings, places)
        own: dict[str, Any] = {}
    else:
        done = extraction.extract(
            backbone, extract, places.images, places.tried_features, fallback_cache=places.features
        )
        fitted, logits = _probe(places.tried_features / done.key, splits, classes, settings)
        own = {"l2": fitted.l2, "computed": done.computed}
        extract = extract.model_copy(update={"engine": done.engine})
    temperature = calibration.fit_temperature(logits["val"], labels["val"])
    scored = metrics.score(
        labels["test"], calibration.softmax(logits["test"], temperature), splits["test"]["domain"].to_numpy(str),
        classes, resamples=settings.evaluate.resamples, seed=settings.seed,
    )  # fmt: skip
    found = {
        "image_size": backbone.transform.size,
        "origin": backbone.description["origin"],
        "width": backbone.width,
        **size,
        "feature_bytes": backbone.width * np.dtype(extract.dtype).itemsize,
        "images_per_second": extraction.speed(backbone, extract, places.images),
        **own,
        "val_accuracy": float((logits["val"].argmax(1) == labels["val"]).mean()),
        "accuracy": scored["accuracy"]["value"],
        "accuracy_low": scored["accuracy"]["low"],
        "accuracy_high": scored["accuracy"]["high"],
        "log_loss": scored["log_loss"]["value"],
        "train_images": len(labels["train"]),
        "test_images": len(labels["test"]),
    }
    return found, epochs


def _prepared(candidate: Candidate, settings: params.Params, places: Places) -> Path:
    """Have the backbone's weights and description in a folder of its own; what an earlier comparison left is taken."""
    name = hashlib.sha256(f"{candidate.backbone.model_dump_json()} {settings.seed}".encode()).hexdigest()[:12]
    folder = places.tried_backbones / f"{candidate.backbone.name.replace('/', '-')[: escape.LONGEST]}-{name}"
    if not _is_whole(folder):
        backbones.prepare(candidate.backbone, settings.seed, folder)
    return folder


def _is_whole(folder: Path) -> bool:
    if not (folder / backbones.DESCRIPTION).exists():
        return False
    try:
        verify(folder / backbones.WEIGHTS, backbones.describe(folder)["digest"])
    except DamagedError as error:
        log.warning("%s: what a comparison kept of it was damaged, and is made anew (%s)", folder, error)
        return False
    return True


def cost(backbone: Backbone, extract: params.Extract) -> dict[str, Any]:
    """Say what an image costs up to the layer: parameters and multiply-accumulates."""
    described = backbone.description
    known = described if extract.layer == PENULTIMATE else described["depths"].get(extract.layer)
    if known is None:  # a module by its own name
        known = sizes.cost(backbone.network, backbone.transform.size)
    return {"parameters": known["parameters"], "macs": known["macs"]}


def _probe(
    folder: Path, splits: dict[str, pd.DataFrame], classes: list[str], settings: params.Params
) -> tuple[Head, dict[str, Logits]]:
    parts = {split: Features(folder, rows) for split, rows in splits.items()}
    fitted = head.fit_logistic_path(
        parts["train"], parts["val"], classes, settings.head.l2, settings.head.max_iterations
    )
    held_out = ("val", "test")
    return fitted, {split: np.concatenate([fitted.logits(x) for x, _ in parts[split]]) for split in held_out}


def _from_scratch(
    backbone: Backbone, splits: dict[str, pd.DataFrame], classes: list[str], settings: params.Params, places: Places
) -> tuple[dict[str, Logits], list[Epoch]]:
    """Train everything from random weights, as fine-tuning does, but with batch norm's statistics of the batch."""
    asked = settings.compare
    recipe = settings.finetune.model_copy(
        update={
            "stages": (params.Stage(unfreeze="all", epochs=asked.epochs, lr=asked.lr),),
            "layer_decay": 1.0,
            "augment": asked.augment,
        }
    )
    empty = Head(np.zeros((len(classes), backbone.width), np.float32), np.zeros(len(classes), np.float32), classes, 0.0)
    model = Classifier(backbone.network, backbone.transform, empty, frozen_statistics=False)
    train, val, test = (SplitImages(splits[split], places.images) for split in ("train", "val", "test"))
    identity = f"{backbone.digest} {version_of(places.dataset)} {recipe.recipe()} {settings.seed}"
    checkpoint = places.tried_backbones / f"{hashlib.sha256(identity.encode()).hexdigest()[:12]}.pt"
    history = finetune.fine_tune(model, backbone.transform, train, val, recipe, settings.seed, checkpoint, identity)
    device = loader.device()
    with Reader(places.images) as reader:
        logits = {
            name: np.concatenate(
                list(finetune.predict_all(model, reader, part, backbone.transform, recipe.batch_size, device))
            )
            for name, part in (("val", val), ("test", test))
        }
    checkpoint.unlink(missing_ok=True)
    return logits, history


def merge(before: pd.DataFrame, row: Row) -> pd.DataFrame:
    """Put a new row to earlier ones, in the place of one of the same candidate on the same data.

    One that failed takes the place of a failed one alone: what was measured before stays.
    """
    new = pd.DataFrame([row])
    if before.empty:
        return new
    same = (before[CANDIDATE].fillna("") == new[CANDIDATE].fillna("").iloc[0]).all(axis=1)
    measured = before["reason"] == ""
    again = (before[["image_size", "origin"]] == new[["image_size", "origin"]].iloc[0]).all(axis=1)
    replaced = same & (~measured | again & (row.reason == ""))
    return pd.concat([before[~replaced], new], ignore_index=True)


def read(path: Path) -> pd.DataFrame:
    """Read compare.parquet; no rows where there is none."""
    if not path.exists():
        return pd.DataFrame(columns=[field.name for field in fields(Row)])
    table = digests.read(path)
    with reading(path):
        frame: pd.DataFrame = table.to_pandas()[[field.name for field in fields(Row)]]
    return frame


def write(path: Path, table: pd.DataFrame) -> None:
    """Replace compare.parquet, or the table of the curves."""
    with replacing(path) as temporary:
        pq.write_table(digests.with_digest(pa.Table.from_pandas(table, preserve_index=False)), temporary)
