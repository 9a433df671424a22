"""CSV files for DVC plots of an evaluation, on the validation images: experiments are compared by these."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.dataset.tables import Labels
from rootstock.evaluation.intervals import Integers
from rootstock.evaluation.learning_curve import LearningCurve
from rootstock.evaluation.metrics import reliability
from rootstock.evaluation.plot_style import MODELS
from rootstock.evaluation.plots import MAX_DRAWN, confusion_names, most_mistaken, stage_names
from rootstock.evaluation.scored import AnyPredictions
from rootstock.system import escape, files
from rootstock.system.sampling import evenly_spaced

NO_CURVE = LearningCurve((), (), ())
MOST_ROWS = 20_000  # of confusion.csv: half a megabyte
ENDS = {"accuracy": "value", "low": "low", "high": "high"}


def write(
    folder: Path,
    *,
    labels: Labels,
    winner: str,
    classes: Sequence[str],
    metrics: Mapping[str, Any],
    history: pd.DataFrame,
    l2_path: Sequence[Mapping[str, float]],
    predictions: AnyPredictions,
    backbone: Mapping[str, Any],
    learning_curve: LearningCurve | None = None,
) -> None:
    """Write confusion, per_class, history, l2_path, reliability, size and learning_curve as CSV files.

    DVC puts every row into its page. Of many classes, confusion and per_class therefore have those that are most often
    mistaken, and confusion at most MOST_ROWS images. `size` is a point per model, accuracy against the backbone's
    parameters: `dvc plots diff` draws several runs.

    Args:
        folder: target, created if missing.
        labels: of the images: class indices (n,), or which classes each has (n, k).
        winner: the model shown in confusion.csv and reliability.csv, and whose recall has a column of its own.
        classes: names in index order.
        metrics: figures of each model, as returned by `metrics.score`.
        history: fine-tuning's stage, epoch, train_loss, val_loss, val_accuracy, in order; may be empty.
        l2_path: the head's L2 path, each entry l2, val_log_loss, val_accuracy.
        predictions: the winner's.
        backbone: its description, with name and parameters.
        learning_curve: the head's accuracy by the number of training images; without it, its file has no rows.
    """
    names = np.asarray(confusion_names(labels, classes), dtype=object)
    actual, predicted = predictions.confused(labels)
    k = len(names)
    worst = np.arange(k) if k <= MAX_DRAWN else most_mistaken(actual, predicted, k)
    confidence, accuracy, images = reliability(*predictions.decisions(labels))
    steps = history[["stage", "epoch", "train_loss", "val_loss", "val_accuracy"]].reset_index(drop=True)
    steps["stage"] = stage_names(history)
    steps["epoch"] += 1  # of its stage, as people count
    steps.insert(0, "step", np.arange(1, len(steps) + 1))
    tables = {
        "confusion": _confusion(names, actual, predicted, worst),
        "per_class": pd.DataFrame([_class_row(name, metrics, winner) for name in names[worst[worst < len(classes)]]]),
        "history": steps,
        "l2_path": pd.DataFrame(l2_path, columns=["l2", "val_log_loss", "val_accuracy"]).assign(
            log10_l2=lambda path: np.log10(path["l2"].to_numpy(float))
        ),
        "reliability": pd.DataFrame({"confidence": confidence, "accuracy": accuracy, "images": images}),
        "learning_curve": (learning_curve or NO_CURVE).as_table(),
        "size": pd.DataFrame(
            {"backbone": backbone["name"], "model": model, "million_parameters": backbone["parameters"] / 1e6}
            | {end: metrics[model]["accuracy"].get(value) for end, value in ENDS.items()}
            for model in filter(metrics.__contains__, MODELS)
        ),
    }
    for name, table in tables.items():
        files.write(folder / f"{name}.csv", escape.as_csv(table))


def _confusion(names: NDArray[np.object_], actual: Integers, predicted: Integers, shown: Integers) -> pd.DataFrame:
    """Return a row per pair of the shown classes, mostly one per image; of many, evenly spaced ones."""
    among = np.flatnonzero(np.isin(actual, shown) & np.isin(predicted, shown))
    among = among[evenly_spaced(len(among), MOST_ROWS)]
    return pd.DataFrame({"actual": names[actual[among]], "predicted": names[predicted[among]]})


def _class_row(name: str, metrics: Mapping[str, Any], winner: str) -> dict[str, Any]:
    row: dict[str, Any] = {"class": name, "recall": metrics[winner]["classes"][name].get("recall", {}).get("value")}
    for model in filter(metrics.__contains__, MODELS):
        figures = metrics[model]["classes"][name]
        row["images"] = figures["images"]
        for metric in ("recall", "precision", "f1"):
            for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                row[f"{model}_{metric}{suffix}"] = figures.get(metric, {}).get(end)
    return row
