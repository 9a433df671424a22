"""Plots of an evaluation."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rootstock.dataset.tables import Labels
from rootstock.evaluation.intervals import Integers, Interval
from rootstock.evaluation.metrics import reliability
from rootstock.evaluation.multi_label_predictions import NO_CLASS
from rootstock.evaluation.plot_style import LIGHT, MODELS, Theme, in_both_themes, legend, new_figure, short
from rootstock.evaluation.scored import AnyPredictions

MAX_COUNTED = 15  # classes up to which the confusion matrix shows counts
MAX_DRAWN, WORST = 100, 50  # classes of a confusion matrix; of more, those with the most mistakes are drawn


def pictures(
    *,
    labels: Labels,
    predictions: Mapping[str, AnyPredictions],
    winner: str,
    classes: Sequence[str],
    metrics: Mapping[str, Any],
    history: pd.DataFrame,
    l2_path: Sequence[Mapping[str, float]],
) -> dict[str, bytes]:
    """Plot "curves", "confusion", "reliability" and "recall" of a report, each also with the suffix "_dark".

    Args:
        labels: of the test images: class indices (n,), or which classes each has (n, k).
        predictions: of the models to show; the winner's at least.
        winner: the model shown in the confusion matrix.
        classes: names in index order.
        metrics: figures of the same models, as returned by `metrics.score`.
        history: fine-tuning's stage, epoch, train_loss, val_loss, val_accuracy, in order; may be empty.
        l2_path: the head's L2 path, each entry l2, val_log_loss, val_accuracy.
    """
    actual, predicted = predictions[winner].confused(labels)
    return in_both_themes(
        {
            "curves": lambda theme: draw_curves(history, l2_path, theme),
            "confusion": lambda theme: draw_confusion(actual, predicted, confusion_names(labels, classes), theme),
            "reliability": lambda theme: draw_reliability(labels, predictions, theme),
            "recall": lambda theme: draw_recall(metrics, winner, theme, models=predictions),
        }
    )


def confusion_names(labels: Labels, classes: Sequence[str]) -> list[str]:
    """Return the names of a confusion matrix: the classes, and where images have any number of them, none."""
    return [*classes, *([NO_CLASS] if labels.ndim == 2 else [])]


def draw_confusion(labels: Integers, predicted: Integers, classes: Sequence[str], theme: Theme = LIGHT) -> Figure:
    """Plot the confusion matrix: one row per actual class, darker for a larger share of the row, mistakes in red.

    Any non-zero cell has at least a third of the colour, so that a single mistake stays visible. Of more than MAX_DRAWN
    classes, the WORST are drawn: those that are most often mistaken, for another one or another one for them.
    """
    k = len(classes)
    counts = np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if k > MAX_DRAWN:
        worst = most_mistaken(labels, predicted, k)
        counts, share = counts[np.ix_(worst, worst)], share[np.ix_(worst, worst)]
        classes, k = [classes[index] for index in worst], len(worst)
    strength = np.where(counts > 0, 0.3 + 0.7 * np.sqrt(share), 0)[:, :, None]
    hue = np.where(np.eye(k, dtype=bool)[:, :, None], to_rgb(theme.finetuned), to_rgb(theme.wrong))
    side = float(np.clip(2 + 0.36 * k, 4.5, 16))  # inches: names stay legible with 100 classes
    figure, [[axes]] = new_figure(theme, side, side)
    axes.imshow(strength * hue + (1 - strength) * np.array(to_rgb(theme.background)), interpolation="nearest")
    ticks = range(k)
    points = float(np.clip(72 * 0.8 * (side - 2) / len(ticks), 4, 10))
    names = [short(classes[tick]) for tick in ticks]
    upright = k > 4 and max(map(len, names)) > 2
    axes.set_xticks(ticks, names, rotation=90 if upright else 0, fontsize=points, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=points, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    axes.grid(visible=False)
    axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    axes.grid(visible=True, which="minor", color=theme.faint, linewidth=0.8 if k <= MAX_COUNTED else 0.25)
    if k <= MAX_COUNTED:
        for actual, guess in np.argwhere(counts):
            colour = theme.background if strength[actual, guess, 0] > 0.55 else theme.ink
            count = f"{counts[actual, guess]:,}"
            axes.text(guess, actual, count, ha="center", va="center", color=colour, fontsize=9)
    return figure


def most_mistaken(labels: Integers, predicted: Integers, k: int) -> Integers:
    """Return the classes, at most WORST of k, that are most often mistaken, for another or another for them."""
    wrong = labels != predicted
    mistaken = sum(np.bincount(classes[wrong], minlength=k) for classes in (labels, predicted))
    worst: Integers = np.sort(np.argsort(-mistaken, kind="stable")[:WORST])
    return worst


def draw_curves(history: pd.DataFrame, l2_path: Sequence[Mapping[str, float]], theme: Theme = LIGHT) -> Figure:
    """Plot loss and validation accuracy along the head's L2 path and, if there is any, fine-tuning."""
    columns = 1 if history.empty else 2
    figure, grid = new_figure(theme, 5.4 * columns, 5.6, (1, 1), (1, 1.4)[:columns])
    _head_curves(l2_path, theme, *grid[:, 0])
    if not history.empty:
        _finetuning_curves(history, l2_path, theme, *grid[:, 1])
    grid[0, 0].set_ylabel("log loss")
    grid[1, 0].set_ylabel("validation accuracy")
    for axes in grid[1]:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def _head_curves(l2_path: Sequence[Mapping[str, float]], theme: Theme, loss: Axes, accuracy: Axes) -> None:
    place = range(len(l2_path))
    style = {**theme.model("head"), "markersize": 4, "label": "validation"}
    ring = {**style, "markersize": 11, "markerfacecolor": "none", "linestyle": "none", "label": "selected"}
    for axes, metric in ((loss, "val_log_loss"), (accuracy, "val_accuracy")):
        axes.plot(place, [step[metric] for step in l2_path], **style)
        if l2_path:
            axes.plot(_selected(l2_path), l2_path[_selected(l2_path)][metric], **ring)
    every = max(1, -(-len(l2_path) // 9))
    accuracy.set_xticks(place[::every], [f"{step['l2']:.2g}" for step in l2_path[::every]])
    accuracy.set_xlabel("L2 strength")
    loss.set_title("head", fontsize=10, color=theme.ink, pad=18)
    legend(loss, theme)


def _finetuning_curves(
    history: pd.DataFrame, l2_path: Sequence[Mapping[str, float]], theme: Theme, loss: Axes, accuracy: Axes
) -> None:
    steps = np.arange(1, len(history) + 1)
    style = {**theme.model("finetuned"), "markersize": 4, "label": "validation"}
    dashed = {**style, "linestyle": "--", "alpha": 0.75, "label": "training"}
    loss.plot(steps, history["train_loss"].to_numpy(), **dashed)
    loss.plot(steps, history["val_loss"].to_numpy(), **style)
    accuracy.plot(steps, history["val_accuracy"].to_numpy(), **style)
    if l2_path:
        best = l2_path[_selected(l2_path)]
        loss.axhline(best["val_log_loss"], color=theme.head, linewidth=1.2, label="head, validation")
        accuracy.axhline(best["val_accuracy"], color=theme.head, linewidth=1.2)
    stages = stage_names(history)
    for start in [0, *(at + 1 for at, (one, other) in enumerate(pairwise(stages)) if one != other)]:
        for axes in (loss, accuracy) if start else ():
            axes.axvline(start + 0.5, color=theme.ink, linewidth=0.8, linestyle=":")
        style = {"fontsize": 8, "color": theme.ink, "parse_math": False}
        loss.text(start + 0.55, 1.01, short(stages[start]), transform=loss.get_xaxis_transform(), **style)
    loss.set_title("fine-tuning", fontsize=10, color=theme.ink, pad=18)
    accuracy.set_xlabel("epoch (all stages)")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.set_xlim(0.5, len(steps) + 0.5)
    legend(loss, theme)


def stage_names(history: pd.DataFrame) -> list[str]:
    """Return the stage of each epoch as people count: 1 (last_block), 2 (all)."""
    if "unfrozen" not in history:
        return [str(stage) for stage in history["stage"]]
    return [f"{stage + 1} ({name})" for stage, name in zip(history["stage"], history["unfrozen"], strict=True)]


def draw_reliability(labels: Labels, predictions: Mapping[str, AnyPredictions], theme: Theme = LIGHT) -> Figure:
    """Plot the reliability diagram: accuracy against confidence in 15 bins, and the images per bin.

    Where images have any number of classes, each is a decision of its own: how often images have it, against its
    probability.
    """
    figure, [[upper], [lower]] = new_figure(theme, 5.4, 5.8, (3, 1))
    upper.plot([0, 1], [0, 1], color=theme.ink, linewidth=0.8, linestyle=":", label="perfect calibration")
    for shift, (name, model) in zip((-0.005, 0.005), predictions.items(), strict=False):
        confidence, accuracy, images = reliability(*model.decisions(labels))
        style = theme.model(name)
        upper.plot(confidence, accuracy, color=style["color"], linewidth=0.9)
        upper.scatter(
            confidence, accuracy, s=8 + 20 * np.log10(images), **style
        )  # marker size grows with the number of images
        lower.bar(confidence + shift, images, width=0.01, color=style["color"])
    upper.set_ylabel("accuracy" if labels.ndim == 1 else "share that has the class")
    lower.set_ylabel("images" if labels.ndim == 1 else "decisions (image and class)")
    lower.set_xlabel("confidence" if labels.ndim == 1 else "probability")
    lower.set_yscale("log")
    lower.set_ylim(bottom=0.7)
    for axis in (upper.xaxis, upper.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    legend(upper, theme, above=True)
    return figure


def draw_recall(
    metrics: Mapping[str, Any], winner: str, theme: Theme = LIGHT, *, worst: int = 20, models: Iterable[str] = MODELS
) -> Figure:
    """Plot recall of models with 95 % intervals for the winner's worst classes."""
    scored = {name: figures for name, figures in metrics[winner]["classes"].items() if figures["images"]}
    names = sorted(scored, key=lambda name: scored[name]["recall"]["value"])[:worst]
    recall = {model: [metrics[model]["classes"][name]["recall"] for name in names] for model in models}
    return draw_shares([short(name) for name in names], recall, "recall, 95 % interval", theme)


def draw_shares(
    names: Sequence[str], shares: Mapping[str, Sequence[Interval | None]], label: str, theme: Theme = LIGHT
) -> Figure:
    """Plot two models' shares with their intervals, one row per name; shares may be missing."""
    figure, [[axes]] = new_figure(theme, 7.6, 1.4 + 0.36 * len(names))
    for shift, (model, intervals) in zip((-0.15, 0.15), shares.items(), strict=False):
        given = [(row + shift, interval) for row, interval in enumerate(intervals) if interval]
        value, low, high = (
            np.array([interval.get(end, interval["value"]) for _, interval in given])
            for end in ("value", "low", "high")
        )
        style = {**theme.model(model), "xerr": [value - low, high - value], "linestyle": "none", "elinewidth": 1.6}
        axes.errorbar(value, [row for row, _ in given], **style, markersize=5)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(label)
    legend(axes, theme, above=True)
    return figure


def _selected(l2_path: Sequence[Mapping[str, float]]) -> int:
    return min(range(len(l2_path)), key=lambda step: l2_path[step]["val_log_loss"])
