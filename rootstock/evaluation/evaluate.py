"""Which model is better, how good it is, and where it fails: validation chooses, the test split is read once."""

import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from rootstock.evaluation import metrics, plots
from rootstock.evaluation.report import Mistake, Report, render
from rootstock.features import feature_keys
from rootstock.features.reader import Features
from rootstock.images import loader, pixels, value_ranges
from rootstock.model import model
from rootstock.system import progress
from rootstock.system.errors import SourceError
from rootstock.system.files import replacing, write
from rootstock.training import calibration, classifier, finetune, head
from rootstock.training.finetune import SplitImages
from rootstock.training.head import Head

log = logging.getLogger(__name__)
Logits = NDArray[np.float32]
BATCH_SIZE = 64
MODELS = ("head", "finetuned")
SAME_LOSS = 5e-4  # log losses that are nearer are a tie: the engines that score head and network differ by as much
CALLED = {"head": "the head on frozen features", "finetuned": "the fine-tuned network"}
THUMBNAIL_PX = 160
FEW_IMAGES = 30  # of fewer, a bootstrap draws the same few again and again


@dataclass(frozen=True)
class Inputs:
    """The folders of everything that came before."""

    images: Path
    dataset: Path
    backbone: Path
    features: Path
    head: Path
    finetuned: Path


@dataclass(frozen=True)
class Choice:
    """The better model by validation, with the figures and a sentence that says why."""

    winner: str
    figures: dict[str, dict[str, float]]
    why: str


@dataclass(frozen=True)
class Scored:
    """Rows of the manifest with both models' calibrated probabilities (n, k) float32."""

    rows: pd.DataFrame
    probabilities: dict[str, NDArray[np.float32]]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices (n,)."""
        return self.rows["class_index"].to_numpy(np.int64)


class ModelPair:
    """The two models, ready to score any split."""

    def __init__(self, inputs: Inputs, params: Params) -> None:
        self.inputs = inputs
        self.manifest = tables.load_manifest(inputs.dataset)
        self.summary = tables.load_verified_summary(inputs.dataset, self.manifest)
        self.classes = tables.classes_of(self.manifest)
        self.head: Head = head.load(inputs.head)
        if self.head.classes != self.classes:
            raise SourceError(
                f"{inputs.head} is of other classes ({', '.join(self.head.classes)}) than {inputs.dataset} "
                f"({', '.join(self.classes)}); run train_head again"
            )
        self.backbone = backbones.load(inputs.backbone, self.head.layer, self.head.pooling)
        self.features, *_ = feature_keys.find(self.backbone.description, params.extract, inputs.features)
        finetune.check(inputs.finetuned)
        self.epochs = finetune.read_history(inputs.finetuned / finetune.HISTORY)
        self.finetuned = classifier.Classifier(self.backbone.network, self.backbone.transform, self.head)
        classifier.load(self.finetuned, inputs.finetuned / classifier.WEIGHTS)

    @property
    def tuned(self) -> bool:
        """Whether anything was fine-tuned; else both models are one, and only rounding could tell them apart."""
        return bool(self.epochs)

    def rows(self, split: str) -> pd.DataFrame:
        """Select a split's images, in the order in which both models score them."""
        rows = self.manifest[self.manifest["split"] == split]
        return rows.sort_values(["shard", "offset"], ignore_index=True)

    def logits(self, split: str) -> dict[str, Logits]:
        """Score a split with both models: logits (n, k) each; the head's for both where nothing was fine-tuned."""
        rows = self.rows(split)
        from_head = np.concatenate([self.head.logits(x) for x, _ in Features(self.features, rows)])
        if not self.tuned:
            return dict.fromkeys(MODELS, from_head)
        device = loader.device()
        network = self.finetuned.to(device)
        with Reader(self.inputs.images) as reader:
            examples = SplitImages(rows, self.inputs.images)
            scored = finetune.predict_all(network, reader, examples, self.backbone.transform, BATCH_SIZE, device)
            from_network = list(progress.track(scored, f"evaluate_{split}", -(-len(rows) // BATCH_SIZE), "batches"))
        return {"head": from_head, "finetuned": np.concatenate(from_network)}


def evaluate(
    inputs: Inputs, params: Params, model_dir: Path, report_dir: Path, timings: Callable[[], list[dict[str, Any]]]
) -> dict[str, Any]:
    """Compare the head and the fine-tuned network, and write the better one and a report.

    Args:
        inputs: what the other stages wrote.
        params: all of params.yaml; the report shows it.
        model_dir: replaced by the winner (see `model.save`).
        report_dir: gets metrics.json, predictions.parquet, plots/, timings.json and report.html.
        timings: gives the stages' durations at the time of asking; only the last two files show them.

    Returns:
        The contents of metrics.json.
    """
    pair = ModelPair(inputs, params)
    on_val = pair.logits("val")
    labels = pair.rows("val")["class_index"].to_numpy(np.int64)
    choice = choose(on_val, labels)
    if not pair.tuned:
        right = f"{choice.figures['head']['accuracy']:.1%} of {len(labels)} validation images right"
        choice = replace(choice, why=f"Nothing was fine-tuned, so the model is {CALLED['head']}: {right}.")
    temperature = {name: calibration.fit_temperature(logits, labels) for name, logits in on_val.items()}
    on_test = pair.logits("test")  # read only now that the choice is made
    val, test = (_scored(pair, *scored, temperature) for scored in (("val", on_val), ("test", on_test)))
    scores: dict[str, Any] = {
        name: metrics.score(
            test.labels, test.probabilities[name], test.rows["domain"].to_numpy(str), pair.classes,
            resamples=params.evaluate.resamples, seed=params.seed,
        )
        for name in MODELS
    }  # fmt: skip
    counts = pair.manifest["split"].value_counts()
    scores |= {"winner": choice.winner, "images": {split: int(counts[split]) for split in ("train", "val", "test")}}
    warnings = _warnings(pair, temperature, len(test.rows))
    for warning in warnings:
        log.warning("%s", warning)
    _write_model(pair, choice, temperature[choice.winner], scores, model_dir)
    told = [*pair.head.warnings, *finetune.warnings(pair.epochs), *warnings]
    _write_report(pair, params, choice, val, test, scores, told, report_dir, timings)
    return scores


def choose(logits: dict[str, Logits], labels: NDArray[np.int64]) -> Choice:
    """Choose by validation accuracy, then log loss; the head, which is simpler, wins a tie."""
    figures = {}
    for name in MODELS:
        probabilities = calibration.softmax(logits[name])
        right = probabilities[np.arange(len(labels)), labels]
        accuracy = float((logits[name].argmax(1) == labels).mean())
        figures[name] = {"accuracy": accuracy, "log_loss": float(-np.log(np.maximum(right, 1e-12)).mean())}
    first, second = (figures[name] for name in MODELS)
    gained, spared = second["accuracy"] - first["accuracy"], first["log_loss"] - second["log_loss"]
    is_tie = gained == 0 and abs(spared) < SAME_LOSS
    winner, loser = ("finetuned", "head") if not is_tie and (gained, spared) > (0, 0) else ("head", "finetuned")
    better, worse = figures[winner], figures[loser]
    reason = f"{better['accuracy']:.1%} of {len(labels)} validation images right, against {worse['accuracy']:.1%}"
    if is_tie:
        reason += f", and a log loss of {better['log_loss']:.3f} each; it is the simpler one"
    elif gained == 0:
        reason += f", and a log loss of {better['log_loss']:.3f} against {worse['log_loss']:.3f}"
    return Choice(winner, figures, f"{CALLED[winner][0].upper()}{CALLED[winner][1:]} won: {reason}.")


def _warnings(pair: ModelPair, temperature: dict[str, float], test_images: int) -> list[str]:
    """Say where calibration ended at a limit, and where there are too few images for an interval to be trusted."""
    found = [
        f"The temperature of {CALLED[name]} is {found:.3g}, at an end of what is tried: its probabilities "
        "on validation are far from the shares they should be."
        for name, found in temperature.items()
        if calibration.at_an_end(found) and (pair.tuned or name == "head")
    ]
    if test_images < FEW_IMAGES:
        found.append(f"There are only {test_images} test images: intervals miss the true figure often.")
    return found


def _scored(pair: ModelPair, split: str, logits: dict[str, Logits], temperature: dict[str, float]) -> Scored:
    probabilities = {name: calibration.softmax(logits[name], temperature[name]) for name in MODELS}
    return Scored(pair.rows(split), probabilities)


def _write_model(pair: ModelPair, choice: Choice, temperature: float, scores: dict[str, Any], model_dir: Path) -> None:
    if choice.winner == "finetuned":
        best = pair.finetuned
    else:
        at = (pair.head.layer, pair.head.pooling)
        frozen = backbones.load(pair.inputs.backbone, *at).network  # the contest's has the fine-tuned weights
        best = classifier.Classifier(frozen, pair.backbone.transform, pair.head)
    described = {
        "kind": choice.winner,
        "backbone": pair.backbone.description,
        "features": {"layer": pair.head.layer, "pooling": pair.head.pooling, "width": pair.backbone.width},
        "classes": pair.classes,
        "temperature": temperature,
        "validation": choice.figures[choice.winner],
    }
    if values_of := value_ranges.common(value_ranges.recorded(pair.summary).values()):
        described[value_ranges.KEY] = list(values_of)
    card = model.card(described, choice.why, scores, pair.summary)
    model.save(model_dir, best, described, card)


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
    plots.write_plots(
        report_dir / "plots",
        predicted={name: test.probabilities[name].argmax(1) for name in MODELS},
        probabilities=test.probabilities[choice.winner],
        **shown,
    )
    told = {name: test.probabilities[name] for name in (MODELS if pair.tuned else MODELS[:1])}
    pictures = plots.pictures(probabilities=told, **shown)
    mistakes = worst_mistakes(pair, test, choice.winner, params.evaluate.mistakes)
    measured = timings()
    write(report_dir / "timings.json", json.dumps(measured, indent=2, ensure_ascii=False) + "\n")
    page = Report(
        name=f"{pair.backbone.description['name']} on {', '.join(sorted(set(pair.manifest['domain'])))}",
        metrics=scores,
        validation={**choice.figures, "why": choice.why},
        dataset=pair.summary,
        backbone=pair.backbone.description,
        params=params.model_dump(mode="json", exclude={"retrain", "compare"}),  # no part of it
        timings=measured,
        pictures=pictures,
        mistakes=mistakes,
        warnings=warnings,
        tuned=pair.tuned,
    )
    write(report_dir / "report.html", render(page))


def _write_predictions(path: Path, scored: list[Scored]) -> None:
    """Write one row an image of validation and test: what it is, and each model's class probabilities."""
    tables = []
    for part in scored:
        columns = {name: pa.array(part.rows[name], pa.string()) for name in ("image_id", "domain", "split", "label")}
        for name in MODELS:
            values = part.probabilities[name]
            flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
            ends = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
            columns[name] = pa.ListArray.from_arrays(ends, flat)
        tables.append(pa.table(columns))
    with replacing(path) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary, compression="zstd")


def worst_mistakes(pair: ModelPair, test: Scored, winner: str, count: int) -> list[Mistake]:
    """Show the test images on which the model was most sure of a wrong class."""
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
    """Draw an image small, as PNG, and a tiny one enlarged to be seen."""
    times = THUMBNAIL_PX // max(image.size)
    if times > 1:
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    drawn = io.BytesIO()
    image.save(drawn, "PNG")
    return drawn.getvalue()
