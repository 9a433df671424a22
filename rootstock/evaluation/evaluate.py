"""Evaluation of both models: choose the better one on validation, test it once, write model and report."""

import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from rootstock.backbones import backbones
from rootstock.config.params import Params
from rootstock.dataset import tables
from rootstock.dataset.shards import Reader
from rootstock.evaluation import dvc_plots, metrics, plots
from rootstock.evaluation.model_selection import MODELS, NAMES, Choice, Logits, choose
from rootstock.evaluation.report import Mistake, Report, render
from rootstock.features import feature_keys
from rootstock.features.feature_spec import FeatureSpec
from rootstock.features.reader import Features
from rootstock.images import pixels, value_ranges
from rootstock.model import model, scoring
from rootstock.model.model import Model
from rootstock.system.errors import SourceError
from rootstock.system.files import replacing, write
from rootstock.training import calibration, classifier, finetune, head
from rootstock.training.classifier import Classifier
from rootstock.training.head import Head

log = logging.getLogger(__name__)
THUMBNAIL_PX = 160
FEW_IMAGES = 30  # with fewer test images, bootstrap intervals are too narrow


@dataclass(frozen=True)
class Inputs:
    """The outputs of the other stages."""

    images: Path
    dataset: Path
    backbone: Path
    features: Path
    head: Path
    finetuned: Path


@dataclass(frozen=True)
class Scored:
    """The images of a split (manifest rows) with each model's calibrated probabilities (n, k) float32."""

    rows: pd.DataFrame
    probabilities: dict[str, NDArray[np.float32]]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Return the class indices (n,)."""
        return self.rows["class_index"].to_numpy(np.int64)


class ModelPair:
    """The head and the fine-tuned network, if there is one, loaded with what is needed to score a split."""

    def __init__(self, inputs: Inputs, params: Params) -> None:
        self.inputs = inputs
        self.manifest = tables.load_manifest(inputs.dataset)
        self.summary = tables.load_verified_summary(inputs.dataset, self.manifest)
        self.classes = tables.classes_of(self.manifest)
        self.head: Head = head.load(inputs.head)
        if self.head.classes != self.classes:
            raise SourceError(
                f"{inputs.head} was trained on other classes ({', '.join(self.head.classes)}) than those of "
                f"{inputs.dataset} ({', '.join(self.classes)}); run train_head again"
            )
        self.backbone = backbones.load(inputs.backbone, self.head.layer, self.head.pooling)
        self.features, *_ = feature_keys.find(self.backbone.description, params.extract, inputs.features)
        engine = feature_keys.engine_in_use(self.backbone.description, params.extract, inputs.features)
        self.spec = feature_keys.spec_of(self.backbone.description, params.extract, engine)
        self.epochs = finetune.load_history(inputs.finetuned)
        self.finetuned = self._load_finetuned() if self.epochs else None

    def _load_finetuned(self) -> Model:
        own = backbones.load(self.inputs.backbone, self.head.layer, self.head.pooling).network
        network = Classifier(own, self.backbone.transform, self.head)
        classifier.load(network, self.inputs.finetuned / classifier.WEIGHTS)
        spec = FeatureSpec(self.backbone.transform, self.head.layer, self.head.pooling)
        return Model(network, spec, self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the keys of the models: the head's alone if nothing was fine-tuned."""
        return MODELS if self.finetuned else MODELS[:1]

    def rows(self, split: str) -> pd.DataFrame:
        """Return a split's images in the order in which the models score them."""
        rows = self.manifest[self.manifest["split"] == split]
        return rows.sort_values(["shard", "offset"], ignore_index=True)

    def logits(self, split: str) -> dict[str, Logits]:
        """Return each model's logits (n, k) for a split: the head's from cached features, the network's from images."""
        rows = self.rows(split)
        scores = {"head": np.concatenate([self.head.logits(x) for x, _ in Features(self.features, rows)])}
        if self.finetuned:
            scores["finetuned"] = scoring.logits(self.finetuned, rows, self.inputs.images, what=f"evaluate_{split}")
        return scores

    def model(self, name: str) -> tuple[Classifier, FeatureSpec]:
        """Return a model's network, and how its features were computed when it was measured."""
        if name == "finetuned" and self.finetuned:
            return self.finetuned.network, self.finetuned.spec
        return Classifier(self.backbone.network, self.backbone.transform, self.head), self.spec


def evaluate(
    inputs: Inputs, params: Params, model_dir: Path, report_dir: Path, timings: Callable[[], list[dict[str, Any]]]
) -> dict[str, Any]:
    """Compare the head with the fine-tuned network, if there is one, and write the better one and a report.

    Args:
        inputs: the outputs of the other stages.
        params: all of params.yaml; shown in the report.
        model_dir: replaced by the winner (see `model.save`).
        report_dir: receives metrics.json, predictions.parquet, plots/, timings.json and report.html.
        timings: returns the stages' durations so far; only the last two files contain them.

    Returns:
        The contents of metrics.json.
    """
    pair = ModelPair(inputs, params)
    on_val = pair.logits("val")
    labels = pair.rows("val")["class_index"].to_numpy(np.int64)
    choice = choose(on_val, labels)
    temperature = {name: calibration.fit_temperature(logits, labels) for name, logits in on_val.items()}
    on_test = pair.logits("test")  # the choice has been made: the test split is read only now
    val, test = (_scored(pair, *scored, temperature) for scored in (("val", on_val), ("test", on_test)))
    scores: dict[str, Any] = {
        name: metrics.score(
            test.labels, test.probabilities[name], test.rows["domain"].to_numpy(str), pair.classes,
            resamples=params.evaluate.resamples, seed=params.seed,
        )
        for name in pair.names
    }  # fmt: skip
    counts = pair.manifest["split"].value_counts()
    scores |= {"winner": choice.winner, "images": {split: int(counts[split]) for split in ("train", "val", "test")}}
    warnings = _warnings(pair, temperature, len(test.rows))
    for warning in warnings:
        log.warning("%s", warning)
    _write_model(pair, choice, temperature[choice.winner], scores, model_dir)
    reported = [*pair.head.warnings, *finetune.warnings(pair.epochs), *warnings]
    _write_report(pair, params, choice, val, test, scores, reported, report_dir, timings)
    return scores


def _warnings(pair: ModelPair, temperature: dict[str, float], test_images: int) -> list[str]:
    """Warn about temperatures at a bound of the search, and about too few test images for reliable intervals."""
    found = [
        f"The temperature of {NAMES[name]} is {found:.3g}, at a bound of the search: its probabilities are badly "
        "calibrated."
        for name, found in temperature.items()
        if calibration.at_bound(found)
    ]
    if test_images < FEW_IMAGES:
        found.append(f"There are only {test_images} test images: the 95 % intervals are unreliable.")
    return found


def _scored(pair: ModelPair, split: str, logits: dict[str, Logits], temperature: dict[str, float]) -> Scored:
    probabilities = {name: calibration.softmax(logits[name], temperature[name]) for name in logits}
    return Scored(pair.rows(split), probabilities)


def _write_model(pair: ModelPair, choice: Choice, temperature: float, scores: dict[str, Any], model_dir: Path) -> None:
    network, spec = pair.model(choice.winner)
    described = {
        "kind": choice.winner,
        "backbone": pair.backbone.description,
        "features": {**spec.as_dict(), "width": pair.backbone.width},
        "classes": pair.classes,
        "temperature": temperature,
        "validation": choice.figures[choice.winner],
    }
    if values_of := value_ranges.common(value_ranges.recorded(pair.summary).values()):
        described[value_ranges.KEY] = list(values_of)
    card = model.card(described, choice.why, scores, pair.summary)
    model.save(model_dir, network, described, card)


def _write_report(
    pair: ModelPair,
    params: Params,
    choice: Choice,
    val: Scored,
    test: Scored,
    scores: dict[str, Any],
    warnings: list[str],
    report_dir: Path,
    timings: Callable[[], list[dict[str, Any]]],
) -> None:
    write(report_dir / "metrics.json", json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
    _write_predictions(report_dir / "predictions.parquet", [val, test])
    shown: dict[str, Any] = {
        "labels": test.labels,
        "winner": choice.winner,
        "classes": pair.classes,
        "metrics": scores,
        "history": finetune.as_table(pair.epochs),
        "l2_path": pair.head.path,
    }
    dvc_plots.write(
        report_dir / "plots",
        predicted={name: probabilities.argmax(1) for name, probabilities in test.probabilities.items()},
        probabilities=test.probabilities[choice.winner],
        **shown,
    )
    pictures = plots.pictures(probabilities=test.probabilities, **shown)
    mistakes = worst_mistakes(pair, test, choice.winner, params.evaluate.mistakes)
    measured = timings()
    write(report_dir / "timings.json", json.dumps(measured, indent=2, ensure_ascii=False) + "\n")
    page = Report(
        name=f"{pair.backbone.description['name']} on {', '.join(sorted(set(pair.manifest['domain'])))}",
        metrics=scores,
        validation={**choice.figures, "why": choice.why},
        dataset=pair.summary,
        backbone=pair.backbone.description,
        params=params.model_dump(mode="json", exclude={"retrain", "compare"}),  # not used by the pipeline
        timings=measured,
        pictures=pictures,
        mistakes=mistakes,
        warnings=warnings,
        tuned=pair.finetuned is not None,
    )
    write(report_dir / "report.html", render(page))


def _write_predictions(path: Path, scored: list[Scored]) -> None:
    """Write one row per validation and test image, with each model's class probabilities."""
    tables = []
    for part in scored:
        columns = {name: pa.array(part.rows[name], pa.string()) for name in ("image_id", "domain", "split", "label")}
        for name, values in part.probabilities.items():
            flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
            ends = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
            columns[name] = pa.ListArray.from_arrays(ends, flat)
        tables.append(pa.table(columns))
    with replacing(path) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary, compression="zstd")


def worst_mistakes(pair: ModelPair, test: Scored, winner: str, count: int) -> list[Mistake]:
    """Return the misclassified test images, most confident first."""
    probabilities = test.probabilities[winner]
    predicted = probabilities.argmax(1)
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(predicted != test.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    mistakes = []
    with Reader(pair.inputs.images) as reader:
        for index in worst:
            row = test.rows.iloc[index]
            picture = pixels.decode(reader.image(row["shard"], int(row["offset"]), int(row["size"]), row["image_id"]))
            mistakes.append(
                Mistake(
                    thumbnail=_thumbnail(picture),
                    actual=row["label"],
                    predicted=pair.classes[predicted[index]],
                    confidence=float(confidence[index]),
                    domain=row["domain"],
                    path=f"{row['source']}/{row['path']}",
                )
            )
    return mistakes


def _thumbnail(image: Image.Image) -> bytes:
    """Return a thumbnail as PNG; tiny images are enlarged."""
    times = THUMBNAIL_PX // max(image.size)
    if times > 1:
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    drawn = io.BytesIO()
    image.save(drawn, "PNG")
    return drawn.getvalue()
