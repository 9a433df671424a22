"""The picture of a learning curve."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from rootstock.evaluation.learning_curve import LearningCurve
from rootstock.evaluation.plot_style import LIGHT, Theme, in_both_themes, legend, new_figure


def pictures(curve: LearningCurve | None) -> dict[str, bytes]:
    """Plot a learning curve, if there is one, also with the suffix "_dark"."""
    return in_both_themes({"learning_curve": lambda theme: draw_learning_curve(curve, theme)}) if curve else {}


def draw_learning_curve(curve: LearningCurve, theme: Theme = LIGHT) -> Figure:
    """Plot accuracy against the number of training images: each head, their mean, and what twice as many would give."""
    figure, [[axes]] = new_figure(theme, 7.6, 3.4)
    means = [float(np.mean(found)) for found in curve.accuracy]
    table, twice = curve.as_table(), 2 * curve.images[-1]
    axes.plot(table["images"], table["accuracy"], "o", color=theme.head, alpha=0.35, markersize=4, label="each head")
    axes.plot(curve.images, means, "-o", color=theme.head, markersize=5, label="mean")
    expected, low, high = (float(choose(curve.doubled)) for choose in (np.mean, np.min, np.max))
    axes.plot([curve.images[-1], twice], [means[-1], expected], "--", color=theme.head, label="expected")
    ends = [[expected - low], [high - expected]]
    axes.errorbar([twice], [expected], yerr=ends, color=theme.head, fmt="D", markersize=5)
    axes.set_xscale("log")
    places = [*curve.images, twice]
    axes.set_xticks(places, [f"{count:,}" for count in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("training images")
    legend(axes, theme, above=True)
    return figure
