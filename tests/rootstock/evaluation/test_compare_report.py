"""The report of a comparison of backbones: its plots, its table and its page."""

import itertools
from dataclasses import replace

import pandas as pd
import pytest

from rootstock.evaluation import compare_report, plot_style
from rootstock.evaluation.compare_table import Row, merge
from tests.compared import ROW


@pytest.fixture
def table() -> pd.DataFrame:
    rows = pd.DataFrame()
    for name, share in (("alexnet", 0.8), ("a <b>", 0.9)):
        for number, layer in enumerate(("low", "mid", "high", "penultimate")):
            value = share + 0.02 * number
            own = {"accuracy": value, "accuracy_low": value - 0.05, "accuracy_high": 0.99}
            rows = merge(rows, replace(ROW, backbone=name, layer=layer, macs=10**8 * (1 + number), **own))
    failed = Row("vgg19", None, "frozen", "low", "avg", data=ROW.data, reason="no weights <here>")
    return merge(rows, failed)


def test_the_plot_shows_each_backbone_at_its_best_layer_on_validation(table):
    best = compare_report.best_of_each(table)
    assert list(zip(best["backbone"], best["layer"], strict=True)) == [
        ("a <b>", "penultimate"),
        ("alexnet", "penultimate"),
    ]


def test_plots_are_drawn_where_there_is_data(table):
    curves = pd.DataFrame({"name": ["lenet5"] * 2, "train_loss": [2.0, 1.0], "val_accuracy": [0.2, 0.6]})
    drawn = compare_report.pictures(table, curves)
    assert set(drawn) == {f"{name}{dark}" for name in ("size", "depths", "scratch") for dark in ("", "_dark")}
    assert all(picture.startswith(b"\x89PNG") for picture in drawn.values())
    one = compare_report.pictures(table[table["layer"] == "low"], pd.DataFrame(columns=["name"]))
    assert set(one) == {"size", "size_dark"}
    assert compare_report.pictures(table[table["reason"] != ""], pd.DataFrame(columns=["name"])) == {}


def test_names_in_a_plot_do_not_overlap():
    figure, [[axes]] = plot_style.new_figure(plot_style.LIGHT, 9, 5.6)
    axes.set_ylim(0, 1)
    place = {"xytext": (6, 3), "textcoords": "offset points"}
    names = [axes.annotate(f"name {number}", (0.5, 0.5 + number / 500), **place) for number in range(6)]
    names.append(axes.annotate("far away", (0.5, 0.9), **place))
    compare_report.keep_apart(figure, names)
    figure.draw_without_rendering()
    boxes = [name.get_window_extent() for name in names]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert names[5].xyann == names[6].xyann == (6, 3)  # the highest, and one that covers nothing, stay
    assert [box.y0 for box in boxes] == sorted(box.y0 for box in boxes)


def test_the_table_shows_accuracy_cost_and_failures(table):
    text = compare_report.markdown(table)
    lines = text.splitlines()
    assert lines[2].startswith("| a &lt;b&gt; (random) | penultimate | 32 px | random, seed 0 | **96.0%** |")
    assert "- vgg19, low: no weights &lt;here&gt;" in text


def test_the_page_is_self_contained_and_escapes_what_it_shows(table):
    page = compare_report.render(table, compare_report.pictures(table, pd.DataFrame(columns=["name"])))
    assert "a &lt;b&gt;" in page and "no weights &lt;here&gt;" in page and "<here>" not in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png") == 4
