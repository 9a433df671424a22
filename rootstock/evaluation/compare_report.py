"""The report of a comparison of backbones: plots, Markdown table and HTML page."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, PercentFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from rootstock.config.architectures import FEATURE_LEVELS, PENULTIMATE
from rootstock.evaluation import figures, plot_style
from rootstock.evaluation.compare_table import FROZEN, SCRATCH
from rootstock.evaluation.plot_style import LIGHT, Theme
from rootstock.evaluation.report import environment
from rootstock.system import escape

LAYERS = [*FEATURE_LEVELS, PENULTIMATE]
AREA_PER_MILLION = 9.0  # square points per million parameters
MIN_AREA = 14.0
GAP = 2.0  # pixels around a name


def name_of(row: Any) -> str:  # noqa: ANN401  a row of a frame, or a mapping
    """Return the display name of a row's backbone, with its variant and whether its weights are random."""
    variant = row["variant"]
    name = f"{row['backbone']} {variant}" if isinstance(variant, str) else str(row["backbone"])
    random = str(row["origin"]).startswith("random")
    return f"{name} (scratch)" if row["trained"] == SCRATCH else f"{name} (random)" if random else name


def best_of_each(table: pd.DataFrame) -> pd.DataFrame:
    """Keep each backbone's best layer, apart by input size and weights; sorted by validation accuracy."""
    measured = table[table["reason"] == ""].sort_values("accuracy", kind="stable")
    same = ["backbone", "variant", "trained", "origin", "image_size"]
    return measured.drop_duplicates(same, keep="last").sort_values("accuracy", ascending=False, kind="stable")


def names_of(rows: pd.DataFrame) -> pd.Series:
    """Return names that tell backbones apart: by image size, and by weights, where one has several."""
    return _told_apart(pd.Series([name_of(row) for _, row in rows.iterrows()], rows.index, dtype=object), rows)


def _told_apart(names: pd.Series, rows: pd.DataFrame) -> pd.Series:
    """Add image size and weights to names of rows that have several."""
    for column, text in (("image_size", "{:.0f} px".format), ("origin", str)):
        several = rows[column].groupby(names).transform("nunique") > 1
        told = [
            f"{name}, {text(value)}" if add else name
            for name, value, add in zip(names, rows[column], several, strict=True)
        ]
        names = pd.Series(told, names.index, dtype=object)
    return names


def _ends(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Return how far the intervals of rows reach below and above their accuracy (2, n); NaN where there is none."""
    value, low, high = (rows[name].to_numpy(float) for name in ("accuracy", "accuracy_low", "accuracy_high"))
    return np.stack([value - low, high - value])


def draw_size(table: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """Plot validation accuracy against multiply-accumulates; marker area is the number of parameters."""
    rows = best_of_each(table)
    rows = rows.assign(name=names_of(rows))
    figure, [[axes]] = plot_style.new_figure(theme, 9, 5.6)
    names: list[Annotation] = []
    for _, row in rows.iterrows():
        colour = theme.finetuned if row["trained"] == SCRATCH else theme.head
        hollow = str(row["origin"]).startswith("random") and row["trained"] == FROZEN
        x, y = row["macs"] / 1e9, row["accuracy"]
        axes.errorbar(x, y, yerr=_ends(row.to_frame().T), color=colour, alpha=0.35, linewidth=1)
        area = max(AREA_PER_MILLION * row["parameters"] / 1e6, MIN_AREA)
        face = "none" if hollow else colour
        axes.scatter(x, y, s=area, facecolor=face, edgecolor=colour, alpha=0.75, zorder=3)
        place = {"xytext": (4 + area**0.5 / 2, 3), "textcoords": "offset points", "fontsize": 8, "color": theme.ink}
        names.append(axes.annotate(row["name"], (x, y), **place, parse_math=False))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.margins(x=0.14)
    axes.set_xlabel("multiply-accumulates per image (G); marker area: parameters")
    _as_accuracy(axes)
    keep_apart(figure, names)
    return figure


def keep_apart(figure: Figure, labels: Sequence[Annotation]) -> None:
    """Move labels down, from the highest on, until none covers another."""
    figure.draw_without_rendering()  # now the limits of the axes are final, and so is where a label is
    placed: list[Bbox] = []
    for label in sorted(labels, key=lambda label: -label.xy[1]):
        box = label.get_window_extent().padded(GAP)
        top = box.y1
        while below := [other.y0 for other in placed if box.overlaps(other)]:
            box = box.translated(0, min(below) - box.y1 - 1)  # a pixel, since boxes that touch overlap
        x, y = label.xyann
        label.xyann = (x, y - (top - box.y1) * 72 / figure.dpi)  # pixels to points
        placed.append(box)


def _of_layers(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["reason"] == "") & (table["trained"] == FROZEN) & table["layer"].isin(LAYERS)]


def draw_depths(rows: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """Plot validation accuracy of frozen backbones by layer, one line each."""
    figure, [[axes]] = plot_style.new_figure(theme, 7.6, 4.6)
    markers = "oDs^vP*Xdp"
    lines = rows.groupby(names_of(rows), sort=False)
    for number, (name, line) in enumerate(lines):
        line = line.drop_duplicates("layer", keep="last").set_index("layer").reindex(LAYERS).dropna(subset="accuracy")
        beside = 0.03 * (number - (len(lines) - 1) / 2)  # or intervals would cover each other
        x, y = [LAYERS.index(layer) + beside for layer in line.index], line["accuracy"].to_numpy(float)
        style = {"marker": markers[number % len(markers)], "markersize": 5, "elinewidth": 0.8}
        axes.errorbar(x, y, yerr=_ends(line), label=name, color=_shade(number), **style)
    axes.margins(x=0.08)
    axes.set_xticks(range(len(LAYERS)), ["low\nedges, textures", "mid\nparts", "high\nwhole objects", PENULTIMATE])
    _as_accuracy(axes)
    plot_style.legend(axes, theme, above=True)
    return figure


def draw_scratch(curves: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """Plot training loss and validation accuracy by epoch for networks trained from scratch."""
    figure, grid = plot_style.new_figure(theme, 7.6, 5.6, (1, 1))
    for number, (name, line) in enumerate(curves.groupby(_told_apart(curves["name"], curves), sort=False)):
        epochs = np.arange(1, len(line) + 1)
        style = {"color": _shade(number), "label": str(name)}
        grid[0, 0].plot(epochs, line["train_loss"].to_numpy(), **style)
        grid[1, 0].plot(epochs, line["val_accuracy"].to_numpy(), **style)
    grid[0, 0].set_ylabel("training loss")
    grid[1, 0].set_xlabel("epoch")
    _as_accuracy(grid[1, 0])
    plot_style.legend(grid[0, 0], theme)
    return figure


def _shade(number: int) -> str:
    return f"C{number % 10}"


def _as_accuracy(axes: Axes, label: str = "validation accuracy") -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel(label)


def pictures(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, bytes]:
    """Plot "size", "depths" and "scratch" where there is data, each also with the suffix "_dark"."""
    drawings: dict[str, Callable[[Theme], Figure]] = {}
    if (table["reason"] == "").any():
        drawings["size"] = lambda theme: draw_size(table, theme)
    if (layers := _of_layers(table))["layer"].nunique() > 1:
        drawings["depths"] = lambda theme: draw_depths(layers, theme)
    if not curves.empty:
        drawings["scratch"] = lambda theme: draw_scratch(curves, theme)
    return plot_style.in_both_themes(drawings)


def markdown(table: pd.DataFrame) -> str:
    """Format a comparison as a Markdown table, best validation accuracy first, then failures and their reasons."""
    head = [
        "| backbone | layer | input | weights | validation accuracy | 95 % interval "
        "| M parameters | G MACs | images/s | bytes per image |",
        "|---|---|--:|---|--:|---|--:|--:|--:|--:|",
    ]
    lines = [
        f"| {escape.markdown(name_of(row))} | {escape.markdown(row['layer'])} | {int(row['image_size'])} px "
        f"| {escape.markdown(row['origin'])} | **{figures.percent(row['accuracy'])}** "
        f"| {figures.percents({'low': row['accuracy_low'], 'high': row['accuracy_high']})} "
        f"| {row['parameters'] / 1e6:.2f} | {row['macs'] / 1e9:.3f} | {row['images_per_second']:.0f} "
        f"| {int(row['feature_bytes']):,} |"
        for _, row in _sorted(table).iterrows()
    ]
    failed = [
        "- " + escape.markdown(f"{row['backbone']}, {row['layer']}: {row['reason']}")
        for _, row in table[table["reason"] != ""].iterrows()
    ]
    return "\n".join([*head, *lines, *(["", "Failed:", "", *failed] if failed else [])])


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["reason"] == ""].sort_values("accuracy", ascending=False, kind="stable")


def render(table: pd.DataFrame, drawn: Mapping[str, bytes]) -> str:
    """Render the HTML page; everything is escaped, since names come from users."""
    rows = [{**row, "name": name_of(row)} for row in _sorted(table).to_dict("records")]
    failed = table[table["reason"] != ""].to_dict("records")
    page: str = environment().get_template("compare.html.j2").render(rows=rows, failed=failed, pictures=drawn)
    return page
