"""Pictures of what fine-tuning brought: accuracy against seconds, and along averages of weights."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rootstock.evaluation.plot_style import LIGHT, Theme, in_both_themes, legend, new_figure, short
from rootstock.training import learning_rate
from rootstock.training.averaging import Average
from rootstock.training.checkpoints import Epoch, RatePoint
from rootstock.training.course import Course

MARKERS = "Ds^vP*X"  # of stages


def pictures(course: Course, seconds: Sequence[float], head_accuracy: float) -> dict[str, bytes]:
    """Plot "cost", "rates" and "averages", where there is something to show, each also with the suffix "_dark".

    Args:
        course: of fine-tuning.
        seconds: of each epoch; not shown if they are of another course.
        head_accuracy: of the head on the validation images, from which fine-tuning starts.
    """
    drawings: dict[str, Callable[[Theme], Figure]] = {}
    if course.history and len(seconds) == len(course.history):
        drawings["cost"] = lambda theme: draw_cost(course.history, seconds, head_accuracy, theme)
    if course.rates:
        drawings["rates"] = lambda theme: draw_rates(course.rates, theme)
    if any(one.kind == "interpolation" for one in course.averages):
        drawings["averages"] = lambda theme: draw_averages(course.averages, theme)
    return in_both_themes(drawings)


def draw_cost(history: Sequence[Epoch], seconds: Sequence[float], head_accuracy: float, theme: Theme = LIGHT) -> Figure:
    """Plot validation accuracy against the seconds of fine-tuning, a line for each stage: what unfreezing more buys."""
    figure, [[axes]] = new_figure(theme, 7.6, 3.4)
    ends = np.cumsum(seconds)
    stages = [epoch.stage for epoch in history]
    starts = [0, *(at + 1 for at, (one, other) in enumerate(pairwise(stages)) if one != other), len(history)]
    axes.plot([0], [head_accuracy], linestyle="none", markersize=7, **theme.model("head"))
    for number, (first, last) in enumerate(pairwise(starts)):
        style = {"color": theme.finetuned, "markersize": 5, "alpha": 0.5 + 0.5 * (number + 1) / (len(starts) - 1)}
        name = f"{history[first].stage + 1} ({short(history[first].unfrozen)})"
        found = [epoch.val_accuracy for epoch in history[first:last]]
        axes.plot(ends[first:last], found, f"-{MARKERS[number % len(MARKERS)]}", label=name, **style)
    axes.set_xlabel("seconds of fine-tuning")
    _as_percent(axes)
    legend(axes, theme, above=True)
    return figure


def draw_rates(points: Sequence[RatePoint], theme: Theme = LIGHT) -> Figure:
    """Plot the training loss of range tests against the learning rate, and the rate chosen for each stage."""
    figure, [[axes]] = new_figure(theme, 7.6, 3.2)
    for number, stage in enumerate(dict.fromkeys(point.stage for point in points)):
        own = [point for point in points if point.stage == stage]
        style = {"color": theme.finetuned, "alpha": 1 / (1 + 0.5 * number)}
        rate = learning_rate.chosen(own)
        axes.plot([point.lr for point in own], [point.loss for point in own], label=f"stage {stage + 1}", **style)
        axes.axvline(rate, linestyle=":", label=f"chosen: {rate:.2g}", **style)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    legend(axes, theme, above=True)
    return figure


def draw_averages(averages: Sequence[Average], theme: Theme = LIGHT) -> Figure:
    """Plot log loss and accuracy on validation from the linear probe (0 %) to what was fine-tuned (100 %)."""
    figure, [[loss, accuracy]] = new_figure(theme, 7.6, 3.2, (1,), (1, 1))
    best_soup = max((one for one in averages if one.kind == "soup"), key=lambda one: one.rank)
    curve = sorted([one for one in averages if one.kind == "interpolation"] + [best_soup], key=lambda one: one.share)
    [chosen] = [one for one in averages if one.chosen]
    for axes, value in ((loss, "val_loss"), (accuracy, "val_accuracy")):
        style = {**theme.model("finetuned"), "label": "validation"}
        axes.plot([one.share for one in curve], [getattr(one, value) for one in curve], **style, markersize=4)
        ring = {"markersize": 11, "markerfacecolor": "none", "linestyle": "none", "label": "selected"}
        axes.plot([chosen.share], [getattr(chosen, value)], **(style | ring))
        axes.set_xlabel("from the linear probe to the fine-tuned")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    loss.set_ylabel("log loss")
    _as_percent(accuracy)
    legend(loss, theme)
    return figure


def _as_percent(axes: Axes) -> None:
    axes.set_ylabel("validation accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
