"""Evaluation: validation chooses the better model, test images say how good it is, and choose nothing."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rootstock.config.params import Params
from rootstock.dataset import tables
from rootstock.evaluation import (
    dvc_plots,
    intervals,
    label_issues,
    learning_curve,
    learning_curve_plot,
    measured_models,
    metrics,
    model_card,
    plots,
    repeated_splits,
    training_plots,
)
from rootstock.evaluation.learning_curve import LearningCurve
from rootstock.evaluation.mistakes import worst_labels, worst_mistakes
from rootstock.evaluation.model_pair import Inputs as Inputs, Logits, ModelPair, Scored
from rootstock.evaluation.model_selection import NAMES, Choice, choose, summarize
from rootstock.evaluation.repeated_splits import RepeatedSplits
from rootstock.evaluation.report import Report, render
from rootstock.images import value_ranges
from rootstock.images.array_store import ArrayStore
from rootstock.model import model
from rootstock.model.novelty import Novelty
from rootstock.system import escape
from rootstock.system.files import replacing, write
from rootstock.training import averaging, calibration, epochs, head_layer
from rootstock.training.checkpoints import Epoch
from rootstock.training.course import as_table

log = logging.getLogger(__name__)
FEW_IMAGES, FEW_OF_CLASS = 100, 30  # in a split, and of a class among the test images, for figures to be worth much
NAMED = 5  # classes that a warning names
NOT_USED = {"retrain", "compare", "export", "cache"}  # sections of params.yaml that the pipeline does not read


@dataclass(frozen=True)
class Evaluation:
    """What was chosen, and how good it is.

    Args:
        choice: the better model, by validation alone.
        validation: figures of each model on the validation images, as returned by `metrics.score`.
        test: those of the winner on the test images, which nothing was chosen by.
        models: how many different models have been measured on these test images on this machine.
        repeated: the head on repeated splits, if `evaluate.repeats` asks for it.
        label_issues: as returned by `label_issues.find`, if `evaluate.label_issues` asks for it.
        learning_curve: whether more images would help, if `evaluate.learning_curve` asks for it.
    """

    choice: Choice
    validation: dict[str, dict[str, Any]]
    test: dict[str, Any]
    models: int = 1
    repeated: RepeatedSplits | None = None
    label_issues: pd.DataFrame | None = field(default=None, compare=False)
    learning_curve: LearningCurve | None = None


def evaluate(
    inputs: Inputs,
    params: Params,
    model_dir: Path,
    report_dir: Path,
    timings: Callable[[], list[dict[str, Any]]],
    uses: Path | None = None,
    store: ArrayStore | None = None,
) -> Evaluation:
    """Choose between the head and the fine-tuned network, if there is one, and write the better one and a report.

    Args:
        inputs: the outputs of the other stages.
        params: all of params.yaml; shown in the report.
        model_dir: replaced by the winner (see `model.save`).
        report_dir: receives metrics.json (the winner in numbers, on validation), validation.json (all figures of each
            model), test.json (the winner's), predictions.parquet, label_issues.csv (labels that are probably wrong),
            plots/, timings.json and report.html.
        timings: returns the stages' durations so far; only the last two files contain them.
        uses: log of the models measured on test images (see `measured_models`); None keeps none.
        store: of decoded images, which a fine-tuned network reads.
    """
    pair = ModelPair(inputs, params, store)
    scores = pair.scores("val")
    logits = {name: own.logits for name, own in scores.items()}
    rows = pair.rows("val")
    labels = rows["class_index"].to_numpy(np.int64)
    temperature = {name: calibration.fit_temperature(scores, labels) for name, scores in logits.items()}
    val = _scored(rows, logits, temperature)
    validation = {name: _score(pair, val, name, params) for name in pair.names}
    choice = choose(validation, "accuracy" if params.head.class_weight == "none" else "balanced_accuracy")
    # The choice has been made: only now are the test images looked at, and by the winner alone.
    known = pair.novelty[choice.winner].with_threshold(scores[choice.winner].novelty)
    own = pair.scores("test", choice.winner)[choice.winner]
    test = _scored(pair.rows("test"), {choice.winner: own.logits}, temperature)
    tested = _score(pair, test, choice.winner, params)
    tested["unknown"] = intervals.share(own.novelty > known.threshold, tables.group_numbers(test.rows))
    uncalibrated, rough = _warn_of_temperatures(temperature), _warn_of_few(pair, val, test, params.evaluate.repeats)
    for warning in uncalibrated + rough:
        log.warning("%s", warning)
    digest = _write_model(pair, choice, temperature[choice.winner], known, validation, tested, model_dir)
    models = measured_models.count(uses, test.rows["image_id"], digest) if uses else 1
    repeated = repeated_splits.measure(pair.folders, pair.manifest, params.head, params.evaluate.repeats, params.seed)
    suspects = _find_label_issues(pair, params)
    curve = _measure_learning_curve(pair, params)
    found = Evaluation(choice, validation, tested, models, repeated, suspects, curve)
    warnings = [*pair.head.warnings, *epochs.warnings(pair.course.history), *uncalibrated]
    _write_report(pair, params, found, val, test, warnings, rough, report_dir, timings)
    return found


def _find_label_issues(pair: ModelPair, params: Params) -> pd.DataFrame | None:
    if not params.evaluate.label_issues:
        return None
    l2 = pair.head.l2 if pair.head.kind == "logistic" else label_issues.L2
    return label_issues.find(pair.folders[0], pair.manifest, pair.classes, l2, params.seed)


def _measure_learning_curve(pair: ModelPair, params: Params) -> LearningCurve | None:
    if not params.evaluate.learning_curve:
        return None
    return learning_curve.measure(pair.folders[0], pair.manifest, pair.classes, pair.head, params.head, params.seed)


def _score(pair: ModelPair, scored: Scored, name: str, params: Params) -> dict[str, Any]:
    return metrics.score(
        scored.labels, scored.probabilities[name], scored.rows["domain"].to_numpy(str), pair.classes,
        groups=tables.group_numbers(scored.rows),
    )  # fmt: skip


def _warn_of_temperatures(temperature: dict[str, float]) -> list[str]:
    """Warn about temperatures at a bound of the search."""
    return [
        f"The temperature of {NAMES[name]} is {found:.3g}, at a bound of the search: its probabilities are badly "
        "calibrated."
        for name, found in temperature.items()
        if calibration.at_bound(found)
    ]


def _warn_of_few(pair: ModelPair, val: Scored, test: Scored, repeats: int) -> list[str]:
    """Warn about too few images for a reliable figure."""
    found = []
    for split, scored in (("validation", val), ("test", test)):
        if len(scored.rows) < FEW_IMAGES:
            found.append(f"There are only {len(scored.rows)} {split} images: figures on them are rough.")
    if len(test.rows) < FEW_IMAGES and not repeats:
        found[-1] += " With evaluate.repeats: 5, the head is measured on repeated splits of all images as well."
    counts = test.rows["label"].value_counts().reindex(pair.classes, fill_value=0)
    if len(few := counts[counts < FEW_OF_CLASS]):
        named = ", ".join(f"{label} ({count})" for label, count in few.sort_values(kind="stable").head(NAMED).items())
        more = f" and {len(few) - NAMED:,} more" if len(few) > NAMED else ""
        found.append(f"Fewer than {FEW_OF_CLASS} test images: {named}{more}. Their figures are rough.")
    return found


def _scored(rows: pd.DataFrame, logits: dict[str, Logits], temperature: dict[str, float]) -> Scored:
    return Scored(rows, {name: calibration.softmax(scores, temperature[name]) for name, scores in logits.items()})


def _write_model(
    pair: ModelPair,
    choice: Choice,
    temperature: float,
    known: Novelty,
    validation: dict[str, dict[str, Any]],
    test: dict[str, Any],
    model_dir: Path,
) -> str:
    """Save the winner; return the digest of its weights."""
    network, spec = pair.model(choice.winner)
    own = validation[choice.winner]
    described = {
        "kind": choice.winner,
        "backbone": pair.backbone.description,
        "features": {**spec.as_dict(), "width": pair.backbone.width},
        "classes": pair.classes,
        "head": head_layer.describe(network.head),
        "temperature": temperature,
        "validation": {name: own[name]["value"] for name in ("accuracy", "log_loss")},
    }
    if values_of := value_ranges.common(value_ranges.recorded(pair.summary).values()):
        described[value_ranges.KEY] = list(values_of)
    if pair.max_side:
        described[model.MAX_SIDE] = pair.max_side
    model.save(model_dir, network, described, model_card.card(described, choice.why, test, pair.summary), known)
    return str(model.describe(model_dir)["digest"])


def _write_report(
    pair: ModelPair,
    params: Params,
    found: Evaluation,
    val: Scored,
    test: Scored,
    warnings: list[str],
    rough: list[str],
    report_dir: Path,
    timings: Callable[[], list[dict[str, Any]]],
) -> None:
    winner = found.choice.winner
    files = {
        "metrics.json": summarize(found.validation, winner),
        "validation.json": found.validation,
        "test.json": {"winner": winner, **found.test},
    }
    if found.repeated:
        files["test.json"]["repeated_splits"] = {"mean": found.repeated.mean, **asdict(found.repeated)}
    for name, contents in files.items():
        write(report_dir / name, json.dumps(contents, indent=2, ensure_ascii=False) + "\n")
    _write_predictions(report_dir / "predictions.parquet", [val, test])
    suspects = pd.DataFrame(columns=label_issues.COLUMNS) if found.label_issues is None else found.label_issues
    write(report_dir / "label_issues.csv", escape.as_csv(suspects))
    trained: dict[str, Any] = {
        "history": as_table(pair.course.history, Epoch),
        "l2_path": [entry for entry in pair.head.path if "l2" in entry],
    }
    dvc_plots.write(
        report_dir / "plots",
        labels=val.labels,
        probabilities=val.probabilities[winner],
        winner=winner,
        classes=pair.classes,
        metrics=found.validation,
        backbone=pair.backbone.description,
        learning_curve=found.learning_curve,
        **trained,
    )
    pictures = plots.pictures(
        labels=test.labels,
        probabilities=test.probabilities,
        winner=winner,
        classes=pair.classes,
        metrics={winner: found.test},
        **trained,
    )
    mistakes = worst_mistakes(pair, test, winner, params.evaluate.mistakes)
    measured = timings()
    write(report_dir / "timings.json", json.dumps(measured, indent=2, ensure_ascii=False) + "\n")
    page = Report(
        name=f"{pair.backbone.description['name']} on {', '.join(sorted(set(pair.manifest['domain'])))}",
        winner=winner,
        why=found.choice.why,
        validation=found.validation,
        test=found.test,
        uses=measured_models.describe(found.models, len(test.rows)),
        repeated=found.repeated.describe() if found.repeated else "",
        dataset=pair.summary,
        backbone=pair.backbone.description,
        params=params.model_dump(mode="json", exclude=NOT_USED),
        timings=measured,
        pictures=pictures
        | learning_curve_plot.pictures(found.learning_curve)
        | training_plots.pictures(pair.course, _epoch_seconds(measured), found.validation["head"]["accuracy"]["value"]),
        averaged=averaging.describe(pair.course.averages),
        mistakes=mistakes,
        suspects=worst_labels(pair, suspects, params.evaluate.label_issues),
        suspected=None if found.label_issues is None else len(suspects),
        warnings=warnings,
        rough=rough,
        learning_curve=found.learning_curve.describe() if found.learning_curve else "",
        unknown=found.test["unknown"]["value"],
        heads=pair.head.tried,
        head_why=pair.head.why,
    )
    write(report_dir / "report.html", render(page))


def _epoch_seconds(timings: list[dict[str, Any]]) -> list[float]:
    return next((stage.get("parts", []) for stage in timings if stage["stage"] == "fine_tune"), [])


def _write_predictions(path: Path, scored: list[Scored]) -> None:
    """Write one row per validation and test image, with the class probabilities of each model measured on it."""
    written = []
    for part in scored:
        columns = {name: pa.array(part.rows[name], pa.string()) for name in ("image_id", "domain", "split", "label")}
        for name, values in part.probabilities.items():
            flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
            ends = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
            columns[name] = pa.ListArray.from_arrays(ends, flat)
        written.append(pa.table(columns))
    with replacing(path) as temporary:
        pq.write_table(pa.concat_tables(written, promote_options="default"), temporary, compression="zstd")
