"""The figures of `metrics.score` for a reader, the same on the report and on the model card.

figures.shown(scores)             the names of those worth showing, by key
figures.value(metric, interval)   98.2%, or 0.031
figures.count_images(images, groups)   40 images in 1 group
"""

import math
from collections.abc import Mapping
from typing import Any

from rootstock.system.phrases import counted as counted, percent as percent

SHARES = {  # larger is better, at most one
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "exact_match": "All labels right",
    "macro_f1": "Macro-F1",
    "micro_f1": "Micro-F1",
    "top5": "Top 5",
    "roc_auc": "ROC-AUC",
    "average_precision": "Average precision",
}
LOSSES = {"log_loss": "Log loss", "brier": "Brier score", "ece": "Calibration error"}  # smaller is better, from zero
PERCENT = {*SHARES, "ece"}
TOP5_FROM = 6  # classes; with fewer, the top 5 say nothing


def shown(scores: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the figures to show, by key and in order: those there are, and of many classes the top 5."""
    names = {metric: name for metric, name in (SHARES | LOSSES).items() if metric in scores}
    if len(scores["classes"]) < TOP5_FROM:
        names.pop("top5", None)
    return names


def value(metric: str, interval: Mapping[str, float]) -> str:
    """Format a figure: shares and calibration error in per cent, losses with three decimals."""
    return percent(interval["value"]) if metric in PERCENT else figure(interval["value"])


def ends(metric: str, interval: Mapping[str, float]) -> str:
    """Format the ends of a figure's interval: 98.2 to 99.8%, 0.031 to 0.112; nothing without one."""
    if metric in PERCENT:
        return percents(interval)
    return "" if interval.get("low") is None else f"{figure(interval['low'])} to {figure(interval['high'])}"


def percents(interval: Mapping[str, float | None]) -> str:
    """Format an interval of shares: 98.2 to 99.8%; nothing without one."""
    low, high = interval.get("low"), interval.get("high")
    if low is None or high is None or math.isnan(low):
        return ""
    return f"{percent(low).rstrip('%')} to {percent(high)}"


def describe_interval(interval: Mapping[str, float | None]) -> str:
    """Format the interval of a share for a sentence: 95 % interval 98.2 to 99.8%."""
    ends = percents(interval)
    return f"95 % interval {ends}" if ends else "too few groups of images for an interval"


def count_images(images: int, groups: int, kind: str = "image") -> str:
    """Format a number of images, and in how many groups they are where those are fewer: 40 test images in 1 group."""
    return f"{counted(images, kind)}{in_groups(images, groups)}"


def in_groups(images: int, groups: int) -> str:
    """Format in how many groups images are; nothing where every group is one image."""
    return f" in {counted(groups, 'group')}" if groups < images else ""


def figure(loss: float) -> str:
    """Format a loss."""
    return f"{loss:.3f}"
