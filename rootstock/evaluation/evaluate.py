"""Evaluation: validation chooses the better model, test images say how good it is, and choose nothing."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.config.params import Params
from rootstock.dataset import tables
from rootstock.evaluation import (
    compare_table,
    embedding,
    intervals,
    label_issues,
    learning_curve,
    measured_models,
    metrics,
    model_card,
    multi_label_metrics,
    outputs,
    predictions,
    repeated_splits,
    verdict,
)
from rootstock.evaluation.kept_heads import NONE_KEPT, KeptHeads
from rootstock.evaluation.learning_curve import LearningCurve
from rootstock.evaluation.model_pair import Inputs as Inputs, ModelPair
from rootstock.evaluation.model_selection import NAMES, Choice, choose
from rootstock.evaluation.outputs import Answers, Evaluation as Evaluation, Surroundings
from rootstock.evaluation.scored import Floats, Scored
from rootstock.images import value_ranges
from rootstock.images.array_store import ArrayStore
from rootstock.model import model
from rootstock.model.novelty import Novelty
from rootstock.system import memory
from rootstock.system.errors import DamagedError
from rootstock.training import calibration, epochs, head_layer, thresholds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Background:
    """What a workspace knows of a dataset and its models; by default nothing.

    Args:
        uses: log of the models measured on test images (see `measured_models`).
        lineage: what the report says of its origin, such as the git commit, by name.
        compared: compare.parquet, in which the report looks for a better backbone; it may be missing.
    """

    uses: Path | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)
    compared: Path | None = None


@dataclass(frozen=True)
class Kept:
    """What is on disk so that it is not computed again; by default nothing.

    Args:
        images: decoded ones, which a fine-tuned network reads.
        features: that a fine-tuned network gave images (kept_features.py).
        heads: what those found that are fitted to be measured, to go on where an evaluation was stopped.
    """

    images: ArrayStore | None = None
    features: ArrayStore | None = None
    heads: KeptHeads = NONE_KEPT


def evaluate(
    inputs: Inputs,
    params: Params,
    model_dir: Path,
    report_dir: Path,
    timings: Callable[[], list[dict[str, Any]]],
    background: Background = Background(),
    kept: Kept = Kept(),
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
        background: what the report says beside the figures.
        kept: what need not be computed again.
    """
    pair = ModelPair(inputs, params, kept.images, kept.features)
    # First, as probabilities of many classes are gigabytes, and there are none yet.
    curve = _measure_learning_curve(pair, params, kept.heads)
    memory.release_unused()
    val = _measure(pair, params, "val", pair.names)
    is_balanced = params.head.class_weight != "none"
    choice = choose(val.figures, "balanced_accuracy" if is_balanced else "accuracy")
    # The choice has been made: only now are the test images looked at, and by the winner alone.
    known = pair.novelty[choice.winner].with_threshold(val.novelty[choice.winner])
    test = _measure(pair, params, "test", [choice.winner], val.temperature, val.thresholds)
    tested = test.figures[choice.winner]
    refused = test.novelty[choice.winner] > known.threshold
    tested["unknown"] = intervals.share(refused, tables.group_numbers(test.scored.rows))
    uncalibrated = _warn_of_temperatures(val.temperature)
    rough = _warn_of_few(pair, choice.winner, val, test, params.evaluate.repeats)
    for warning in uncalibrated + rough:
        log.warning("%s", warning)
    digest = _write_model(pair, choice, val, known, tested, model_dir)
    models = measured_models.count(background.uses, test.scored.rows["image_id"], digest) if background.uses else 1
    repeats = params.evaluate.repeats
    repeated = repeated_splits.measure(pair.folders, pair.manifest, params.head, repeats, params.seed, kept.heads)
    suspects = _find_label_issues(pair, params, [part.to_judge[choice.winner] for part in (val, test)], kept.heads)
    found = Evaluation(choice, val.figures, tested, models, repeated, suspects, curve)
    warnings = [*pair.head.warnings, *epochs.warnings(pair.course.history), *uncalibrated]
    features = np.concatenate([part.features[choice.winner] for part in (val, test)])
    answers = Answers(val.scored, test.scored, (val.kept, test.kept), features)
    compared = _read_compared(background.compared, inputs.dataset)
    around = Surroundings(warnings, rough, timings, background.lineage, compared)
    outputs.write(pair, params, found, answers, around, report_dir)
    return found


@dataclass(frozen=True)
class Measured:
    """What models answered for the images of a split, in figures and as far as it is shown; by model.

    Args:
        scored: what they predict.
        figures: as returned by `metrics.score`.
        temperature: by which their probabilities are calibrated.
        thresholds: of the classes (k,), where images have any number of them; else empty.
        novelty: of each image (n,).
        kept: the images that are mapped (n,).
        features: of these (m, width).
        to_judge: images whose labels the model itself judges, where there are too many for other heads: rows of the
            manifest and calibrated probabilities.
    """

    scored: Scored
    figures: dict[str, dict[str, Any]]
    temperature: dict[str, float]
    thresholds: dict[str, Floats]
    novelty: dict[str, Floats]
    kept: NDArray[np.bool_]
    features: dict[str, Floats]
    to_judge: dict[str, tuple[pd.DataFrame, Floats]]


def _measure(
    pair: ModelPair, params: Params, split: str, models: Sequence[str], temperature: dict[str, float] | None = None,
    cuts: dict[str, Floats] | None = None,
) -> Measured:  # fmt: skip
    """Measure models on a split, to which their temperatures and thresholds are fitted unless they are given."""
    rows = pair.rows(split)
    labels, k = tables.labels_of_rows(rows, pair.classes), len(pair.classes)
    kept = embedding.choose(rows, embedding.MOST_IMAGES // 2 if params.evaluate.explain else 0, params.seed)
    scores = pair.scores(split, *models, keep=kept)
    if temperature is None:
        temperature = {name: calibration.fit_temperature(own.logits, labels) for name, own in scores.items()}
    # Probabilities take the place of the logits: of many classes they are gigabytes.
    probabilities = {
        name: calibration.probabilities(own.logits, temperature[name], own.logits, multi_label=pair.multi_label)
        for name, own in scores.items()
    }
    if cuts is None:
        cuts = {name: thresholds.choose(own, labels) for name, own in probabilities.items() if pair.multi_label}
    memory.release_unused()
    judged = label_issues.draw(len(rows), len(pair.manifest), k, params.seed)
    domains, groups = rows["domain"].to_numpy(str), tables.group_numbers(rows)

    def figures(name: str, own: Floats) -> dict[str, Any]:
        if pair.multi_label:
            return multi_label_metrics.score(labels, own, cuts[name], domains, pair.classes, groups)
        return metrics.score(labels, own, domains, pair.classes, groups=groups)

    keep_all = predictions.keeps_all(params.evaluate, k)
    return Measured(
        Scored.of(rows, probabilities, keep_all=keep_all, classes=pair.classes, thresholds=cuts),
        {name: figures(name, own) for name, own in probabilities.items()},
        temperature,
        cuts,
        {name: own.novelty for name, own in scores.items()},
        kept,
        {name: own.features for name, own in scores.items()},
        {name: (rows.iloc[judged], own[judged]) for name, own in probabilities.items()},
    )


def _read_compared(path: Path | None, dataset: Path) -> pd.DataFrame:
    """Read what was measured of other backbones on the same dataset; a damaged table is a warning."""
    if path is None or not path.exists():
        return pd.DataFrame()
    try:
        rows = compare_table.read(path)
    except DamagedError as error:
        log.warning("%s", error)
        return pd.DataFrame()
    return rows[rows["data"] == compare_table.version_of(dataset)]


def _find_label_issues(
    pair: ModelPair, params: Params, held_out: Sequence[tuple[pd.DataFrame, Floats]], heads: KeptHeads
) -> pd.DataFrame | None:
    """Find labels that are probably wrong; of very many images, by the winner's answers on validation and test."""
    if not params.evaluate.label_issues:
        return None
    if not label_issues.can_judge_all(len(pair.manifest), len(pair.classes)):
        return label_issues.find_held_out(held_out, pair.classes)
    l2 = pair.head.l2 if pair.head.kind == "logistic" else label_issues.L2
    return label_issues.find(pair.folders[0], pair.manifest, pair.classes, l2, params.seed, heads)


def _measure_learning_curve(pair: ModelPair, params: Params, heads: KeptHeads) -> LearningCurve | None:
    if not params.evaluate.learning_curve:
        return None
    return learning_curve.measure(
        pair.folders[0], pair.manifest, pair.classes, pair.head, params.head, params.seed, heads
    )


def _warn_of_temperatures(temperature: dict[str, float]) -> list[str]:
    """Warn about temperatures at a bound of the search."""
    return [
        f"The temperature of {NAMES[name]} is {found:.3g}, at a bound of the search: its probabilities are badly "
        "calibrated."
        for name, found in temperature.items()
        if calibration.at_bound(found)
    ]


def _warn_of_few(pair: ModelPair, winner: str, val: Measured, test: Measured, repeats: int) -> list[str]:
    """Warn about too few images, or groups of images, for a reliable figure."""
    of_val, of_test = (
        verdict.describe_few(part.figures[winner], split) for split, part in (("validation", val), ("test", test))
    )
    can_repeat = pair.manifest["group_id"].nunique() >= repeated_splits.FOLDS
    if of_test and can_repeat and not repeats:
        of_test += " With evaluate.repeats: 5, the head is measured on repeated splits of all images as well."
    found = [*filter(None, (of_val, of_test))]
    of_class = tables.one_row_per_label(test.scored.rows).groupby("label")["group_id"].agg(["size", "nunique"])
    found += filter(None, [verdict.describe_few_of_classes(of_class.reindex(pair.classes, fill_value=0))])
    return found


def _write_model(
    pair: ModelPair,
    choice: Choice,
    val: Measured,
    known: Novelty,
    test: dict[str, Any],
    model_dir: Path,
) -> str:
    """Save the winner; return the digest of its weights."""
    network, spec = pair.model(choice.winner)
    own = val.figures[choice.winner]
    described = {
        "kind": choice.winner,
        "backbone": pair.backbone.description,
        "features": {**spec.as_dict(), "width": pair.backbone.width},
        "classes": pair.classes,
        "head": head_layer.describe(network.head),
        "temperature": val.temperature[choice.winner],
        "why": choice.why,
        "validation": {name: own[name]["value"] for name in ("accuracy", "log_loss")},
    }
    if pair.multi_label:
        cuts = val.thresholds[choice.winner].tolist()
        described[model.THRESHOLDS] = {label: round(cut, 6) for label, cut in zip(pair.classes, cuts, strict=True)}
    if values_of := value_ranges.common(value_ranges.recorded(pair.summary).values()):
        described[value_ranges.KEY] = list(values_of)
    if pair.max_side:
        described[model.MAX_SIDE] = pair.max_side
    model.save(model_dir, network, described, model_card.card(described, choice.why, test, pair.summary), known)
    return str(model.describe(model_dir)["digest"])
