"""What an evaluation leaves in data/report: figures, predictions, label issues, plots, and the report."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.config.params import UNRECORDED, Params
from rootstock.evaluation import (
    advice,
    dvc_plots,
    embedding,
    label_issues,
    learning_curve_plot,
    measured_models,
    mistakes,
    plots,
    predictions,
    training_plots,
    why,
)
from rootstock.evaluation.advice import Advice, Grounds
from rootstock.evaluation.learning_curve import LearningCurve
from rootstock.evaluation.model_pair import ModelPair
from rootstock.evaluation.model_selection import Choice, summarize
from rootstock.evaluation.repeated_splits import RepeatedSplits
from rootstock.evaluation.report import Report, render
from rootstock.evaluation.scored import Scored
from rootstock.system import escape
from rootstock.system.files import write as write_file
from rootstock.training import averaging
from rootstock.training.checkpoints import Epoch
from rootstock.training.course import as_table


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


@dataclass(frozen=True)
class Answers:
    """The winner's answers, and the features that it gave some of the images.

    Args:
        val: the validation images with each model's predictions.
        test: the test images with the winner's.
        kept: which of the images of either split have features.
        features: of these (m, width), validation first.
    """

    val: Scored
    test: Scored
    kept: tuple[NDArray[np.bool_], NDArray[np.bool_]]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Surroundings:
    """What the report says beside the figures.

    Args:
        warnings: on training, in a sentence each.
        rough: why figures are rough, in a sentence each.
        timings: returns the stages' durations so far.
        lineage: git commit and data version, by name; those that there are.
        compared: rows of data/compare of the same dataset.
    """

    warnings: list[str]
    rough: list[str]
    timings: Callable[[], list[dict[str, Any]]]
    lineage: Mapping[str, str]
    compared: pd.DataFrame


def write(
    pair: ModelPair, params: Params, found: Evaluation, answers: Answers, around: Surroundings, report_dir: Path
) -> None:
    """Write all files of data/report."""
    _write_figures(found, report_dir)
    predictions.write(report_dir / "predictions.parquet", [answers.val, answers.test], pair.classes)
    suspects = pd.DataFrame(columns=label_issues.COLUMNS) if found.label_issues is None else found.label_issues
    write_file(report_dir / "label_issues.csv", escape.as_csv(suspects))
    winner = found.choice.winner
    dvc_plots.write(
        report_dir / "plots",
        labels=answers.val.labels,
        predictions=answers.val.predictions[winner],
        winner=winner,
        classes=pair.classes,
        metrics=found.validation,
        backbone=pair.backbone.description,
        learning_curve=found.learning_curve,
        **_trained(pair),
    )
    shown = _shown(pair, params, found, answers)
    page = _page(pair, params, found, around, shown)
    write_file(report_dir / "timings.json", json.dumps(page.timings, indent=2, ensure_ascii=False) + "\n")
    write_file(report_dir / "report.html", render(page))


def _trained(pair: ModelPair) -> dict[str, Any]:
    return {
        "history": as_table(pair.course.history, Epoch),
        "l2_path": [entry for entry in pair.head.path if "l2" in entry],
    }


def _drawn(pair: ModelPair, found: Evaluation, test: Scored) -> dict[str, Any]:
    """Draw the plots of the report."""
    pictures = plots.pictures(
        labels=test.labels,
        predictions=test.predictions,
        winner=found.choice.winner,
        classes=pair.classes,
        metrics={found.choice.winner: found.test},
        **_trained(pair),
    )
    return {"pictures": pictures | learning_curve_plot.pictures(found.learning_curve)}


def _thumbnails(pair: ModelPair, params: Params, found: Evaluation, test: Scored) -> dict[str, Any]:
    """Return what the report shows images of."""
    winner, suspects, asked = found.choice.winner, found.label_issues, params.evaluate
    of_classes = mistakes.worst_of_classes(pair, test, winner, found.test["classes"]) if asked.mistakes else {}
    return {
        "mistakes": mistakes.worst_mistakes(pair, test, winner, asked.mistakes),
        "class_mistakes": of_classes,
        "confusions": mistakes.confusions(test, winner, pair.classes),
        "suspects": [] if suspects is None else mistakes.worst_labels(pair, suspects, asked.label_issues),
        "suspected": None if suspects is None else len(suspects),
        "suspected_test": 0 if suspects is None else int((suspects["split"] == "test").sum()),
        "judged": label_issues.describe_judged(len(pair.manifest), len(pair.classes)),
        "duplicates": mistakes.near_duplicates(pair),
    }


def _shown(pair: ModelPair, params: Params, found: Evaluation, answers: Answers) -> dict[str, Any]:
    """Draw and choose what the report shows; it explains the winner, if `evaluate.explain` asks for it."""
    winner, splits = found.choice.winner, (answers.val, answers.test)
    explain = params.evaluate.explain and not answers.test.rows.empty
    with ThreadPoolExecutor(1) as pool:  # t-SNE, on one core, beside matplotlib, which uses one at a time, too
        map_features = partial(embedding.draw, pair, splits, answers.kept, answers.features, winner, params.seed)
        mapped = pool.submit(map_features) if explain else None
        shown = _drawn(pair, found, answers.test) | _thumbnails(pair, params, found, answers.test)
        if mapped:
            shown |= {"reasons": why.explain(pair, answers.test, winner), "embedding": mapped.result()}
    return shown


def _advice(pair: ModelPair, found: Evaluation, around: Surroundings) -> list[Advice]:
    suspects = found.label_issues
    if suspects is not None:
        suspects = suspects.assign(**{name: suspects[name].map(pair.shown) for name in ("label", "suggested")})
    grounds = Grounds(
        found.choice.winner, found.validation, pair.summary["by_class"], found.test["images"], suspects,
        found.learning_curve, pair.course.history, pair.backbone.description["name"], around.compared,
        found.test["groups"] if found.test["accuracy"].get("low") is None else None,
    )  # fmt: skip
    return advice.give(grounds)


def _page(pair: ModelPair, params: Params, found: Evaluation, around: Surroundings, shown: dict[str, Any]) -> Report:
    """Put the report together; the durations come last, so that they have all of the work."""
    measured, head = around.timings(), found.validation["head"]["accuracy"]["value"]
    shown["pictures"] |= training_plots.pictures(pair.course, _epoch_seconds(measured), head)
    return Report(
        name=f"{pair.backbone.description['name']} on {', '.join(sorted(set(pair.manifest['domain'])))}",
        winner=found.choice.winner,
        why=found.choice.why,
        validation=found.validation,
        test=found.test,
        advice=_advice(pair, found, around),
        uses=measured_models.describe(found.models, found.test["images"]),
        repeated=found.repeated.describe() if found.repeated else "",
        dataset=pair.summary,
        backbone=pair.backbone.description,
        params=params.model_dump(mode="json", exclude=UNRECORDED, exclude_defaults=True),
        lineage=around.lineage,
        timings=measured,
        averaged=averaging.describe(pair.course.averages),
        warnings=around.warnings,
        rough=around.rough,
        learning_curve=found.learning_curve.describe() if found.learning_curve else "",
        unknown=found.test["unknown"]["value"],
        heads=pair.head.tried,
        head_why=pair.head.why,
        **shown,
    )


def _write_figures(found: Evaluation, report_dir: Path) -> None:
    files = {
        "metrics.json": summarize(found.validation, found.choice.winner),
        "validation.json": found.validation,
        "test.json": {"winner": found.choice.winner, **found.test},
    }
    if found.repeated:
        files["test.json"]["repeated_splits"] = {"mean": found.repeated.mean, **asdict(found.repeated)}
    for name, contents in files.items():
        write_file(report_dir / name, json.dumps(contents, indent=2, ensure_ascii=False) + "\n")


def _epoch_seconds(timings: list[dict[str, Any]]) -> list[float]:
    return next((stage.get("parts", []) for stage in timings if stage["stage"] == "fine_tune"), [])
