"""The report of a comparison of backbones: its plots, its table and its page."""

import itertools
from dataclasses import replace

import pandas as pd
import pytest
from matplotlib.figure import Figure

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


def curves(*names: str, image_size: int | None = 32) -> pd.DataFrame:
    """Two epochs each of networks trained from scratch."""
    figures = pd.DataFrame({"train_loss": [2.0, 1.0], "val_accuracy": [0.2, 0.6]})
    return pd.concat([figures.assign(name=name, image_size=image_size, origin="random, seed 0") for name in names])


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_the_plot_shows_each_backbone_at_its_best_layer_on_validation(table):
    best = compare_report.best_of_each(table)
    assert list(zip(best["backbone"], best["layer"], strict=True)) == [
        ("a <b>", "penultimate"),
        ("alexnet", "penultimate"),
    ]


def test_plots_are_drawn_where_there_is_data(table):
    drawn = compare_report.pictures(table, curves("lenet5"))
    assert set(drawn) == {f"{name}{dark}" for name in ("size", "depths", "scratch") for dark in ("", "_dark")}
    assert all(picture.startswith(b"\x89PNG") for picture in drawn.values())
    one = compare_report.pictures(table[table["layer"] == "low"], pd.DataFrame(columns=["name"]))
    assert set(one) == {"size", "size_dark"}
    assert compare_report.pictures(table[table["reason"] != ""], pd.DataFrame(columns=["name"])) == {}


@pytest.mark.parametrize("without", [["alexnet"], ["alexnet", "a <b>"]])
@pytest.mark.parametrize("missing", [None, float("nan")])  # as it is kept, and as it is read where others have one
def test_where_groups_are_too_few_for_an_interval_the_accuracy_is_shown_without_one(table, without, missing):
    ends = ["accuracy_low", "accuracy_high"]
    table[ends] = table[ends].astype(object)
    table.loc[table["backbone"].isin(without), ends] = missing
    drawn = compare_report.pictures(table, pd.DataFrame(columns=["name"]))
    assert set(drawn) == {"size", "size_dark", "depths", "depths_dark"}
    [axes] = compare_report.draw_size(table).axes
    assert len(axes.texts) == 2  # both backbones
    page, text = compare_report.render(table, drawn), compare_report.markdown(table)
    assert "nan" not in page.partition("<tbody>")[2] and "nan" not in text and "None" not in text
    assert "**86.0%** |  |" in text and page.count("86.0%") == 1


def test_rows_of_a_backbone_at_several_image_sizes_or_of_several_weights_are_told_apart(table):
    table = table[table["backbone"] == "alexnet"]
    assert list(compare_report.names_of(table).unique()) == ["alexnet (random)"]
    larger, trained = table.assign(image_size=64), table.assign(origin="torchvision, ImageNet")
    both = pd.concat([table, larger, trained, trained.assign(origin="own.pth")], ignore_index=True)
    names = [
        "alexnet (random), 32 px", "alexnet (random), 64 px", "alexnet, torchvision, ImageNet", "alexnet, own.pth",
    ]  # fmt: skip
    assert list(compare_report.names_of(both).unique()) == names
    assert sorted(text.get_text() for text in compare_report.draw_size(both).axes[0].texts) == sorted(names)
    assert sorted(legend(compare_report.draw_depths(both))) == sorted(names)


def test_variants_of_a_backbone_are_lines_of_their_own(table):
    table = table[table["backbone"] == "alexnet"]
    both = pd.concat([table, table.assign(variant="wide")], ignore_index=True)
    assert legend(compare_report.draw_depths(both)) == ["alexnet (random)", "alexnet wide (random)"]


def test_curves_at_several_image_sizes_are_told_apart():
    drawn = pd.concat([curves("lenet5", "plain34"), curves("lenet5", image_size=64)], ignore_index=True)
    assert legend(compare_report.draw_scratch(drawn)) == ["lenet5, 32 px", "plain34", "lenet5, 64 px"]
    assert legend(compare_report.draw_scratch(curves("lenet5", image_size=None))) == ["lenet5"]  # an earlier version's


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
