"""Plots are drawn whatever was trained, and the CSV files for DVC contain the figures."""

import io
import json
import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rootstock.evaluation import dvc_plots, metrics, plot_style, plots
from rootstock.evaluation.scored import Predictions
from rootstock.training import calibration
from tests.slow import slow

BACKBONE = {"name": "resnet18", "parameters": 11_689_512}
HISTORY = ["stage", "epoch", "train_loss", "val_loss", "val_accuracy"]


def evaluation(k: int = 4, n: int = 80, *, classes: list[str] | None = None, epochs: int = 5) -> dict:
    """The data of an evaluation; class 0 has no test images, and fine-tuning is better than the head."""
    draw = np.random.default_rng(k)
    labels = draw.integers(min(1, k - 2), k, n)
    classes = classes or [f"class {c}" for c in range(k)]
    probabilities = {}
    for model, skill in (("head", 2.0), ("finetuned", 4.0)):
        logits = draw.normal(size=(n, k))
        logits[np.arange(n), labels] += skill
        probabilities[model] = calibration.probabilities(logits)
    domains = np.full(n, "field")
    return {
        "labels": labels,
        "predictions": {model: Predictions.of(chances, labels) for model, chances in probabilities.items()},
        "winner": "finetuned",
        "classes": classes,
        "metrics": {
            model: metrics.score(labels, chances, domains, classes) for model, chances in probabilities.items()
        },
        "history": pd.DataFrame(
            [("last_block" if e < 2 else "all", e + 1, 0.9 / (e + 1), 1 / (e + 1), 0.8) for e in range(epochs)],
            columns=HISTORY,
        ),
        "l2_path": [{"l2": l2, "val_log_loss": 0.5 + l2, "val_accuracy": 0.9 - l2} for l2 in (0.1, 0.01, 0.001)],
    }


def write(folder, given: dict) -> dict[str, pd.DataFrame]:
    winners = given["predictions"][given["winner"]]
    dvc_plots.write(folder, **given | {"predictions": winners}, backbone=BACKBONE)
    return {file.name: pd.read_csv(file) for file in folder.iterdir()}


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.size


def drawn_size(figure: Figure) -> tuple[int, int]:
    return size(plot_style.png(figure))


def test_confusion_csv_has_one_row_per_image_with_the_names_of_the_classes(tmp_path):
    given = evaluation()
    table = write(tmp_path, given)["confusion.csv"]
    assert list(table) == ["actual", "predicted"]
    assert list(table["actual"]) == [given["classes"][label] for label in given["labels"]]
    hits = (table["actual"] == table["predicted"]).mean()
    assert hits == pytest.approx(given["metrics"]["finetuned"]["accuracy"]["value"], abs=1e-6)


def test_of_many_classes_and_images_the_csv_files_have_the_most_mistaken_classes_and_some_images(tmp_path, monkeypatch):
    given = evaluation(120, 3000)
    tables = write(tmp_path / "all", given)
    drawn = set(tables["per_class.csv"]["class"])
    predicted = given["predictions"]["finetuned"].predicted
    wrong = given["labels"] != predicted
    mistaken = np.bincount(np.r_[given["labels"][wrong], predicted[wrong]], minlength=120)
    assert len(drawn) == plots.WORST
    least = min(mistaken[given["classes"].index(name)] for name in drawn)
    assert least >= np.sort(mistaken)[-plots.WORST]
    shown = tables["confusion.csv"]
    assert set(shown["actual"]) <= drawn and set(shown["predicted"]) <= drawn and len(shown) > 500
    monkeypatch.setattr(dvc_plots, "MOST_ROWS", 100)
    few = write(tmp_path / "few", given)["confusion.csv"]
    assert len(few) == 100 and len(few.drop_duplicates()) > 30


def test_per_class_csv_has_both_models_figures_and_blanks_for_a_class_without_images(tmp_path):
    given = evaluation()
    table = write(tmp_path, given)["per_class.csv"].set_index("class")
    assert table.loc["class 0", "images"] == 0 and table.loc["class 0"].drop("images").isna().all()
    assert table["images"].sum() == len(given["labels"])
    for model in ("head", "finetuned"):
        figures = given["metrics"][model]["classes"]["class 2"]
        for metric in ("recall", "precision", "f1"):
            for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                got = table.loc["class 2", f"{model}_{metric}{suffix}"]
                assert got == pytest.approx(figures[metric][end], abs=1e-5)


def test_history_csv_counts_steps_over_all_stages(tmp_path):
    table = write(tmp_path, evaluation())["history.csv"]
    assert list(table) == ["step", *HISTORY]
    assert list(table["step"]) == [1, 2, 3, 4, 5]
    assert list(table["stage"]) == ["last_block"] * 2 + ["all"] * 3


def test_an_empty_history_gives_a_csv_file_with_only_a_header(tmp_path):
    write(tmp_path, evaluation(epochs=0))
    assert (tmp_path / "history.csv").read_text() == "step,stage,epoch,train_loss,val_loss,val_accuracy\n"


def test_reliability_csv_adds_up_to_the_winners_calibration_error(tmp_path):
    given = evaluation()
    table = write(tmp_path, given)["reliability.csv"]
    assert list(table) == ["confidence", "accuracy", "images"]
    gap = (table["images"] * (table["confidence"] - table["accuracy"]).abs()).sum() / table["images"].sum()
    assert gap >= given["metrics"]["finetuned"]["ece"]["value"] - 1e-5  # which is less what noise adds


def test_size_csv_has_a_point_for_each_model(tmp_path):
    given = evaluation()
    table = write(tmp_path, given)["size.csv"]
    assert list(table["model"]) == ["head", "finetuned"]
    assert list(table["million_parameters"]) == [11.6895] * 2
    assert list(table["accuracy"]) == [given["metrics"][model]["accuracy"]["value"] for model in table["model"]]
    assert (table["low"] <= table["accuracy"]).all() and (table["accuracy"] <= table["high"]).all()


def test_equal_evaluations_give_equal_bytes_and_no_other_files(tmp_path):
    for name in ("one", "other"):
        write(tmp_path / name, evaluation())
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    names = ("confusion", "history", "l2_path", "learning_curve", "per_class", "reliability", "size")
    assert files == [f"{name}.csv" for name in names]
    for file in files:
        content = (tmp_path / "one" / file).read_bytes()
        assert content == (tmp_path / "other" / file).read_bytes()
        assert b"\r" not in content and content.endswith(b"\n")


def test_class_names_with_commas_and_quotes_survive_in_the_csv(tmp_path):
    names = ["plain", 'a, "b"', "größer\u3042", "$x^2$"]
    tables = write(tmp_path, evaluation(classes=names))
    assert list(tables["per_class.csv"]["class"]) == names
    assert set(tables["confusion.csv"]["actual"]) <= set(names)


@pytest.mark.parametrize("k", [2, *slow(4, 40, 120, 150)])
def test_all_plots_are_drawn_for_few_and_many_classes(k):
    drawn = plots.pictures(**evaluation(k, 10 * k))
    names = {"curves", "confusion", "reliability", "recall"}
    assert set(drawn) == names | {f"{name}_dark" for name in names}
    for name in names:
        assert size(drawn[name]) == size(drawn[f"{name}_dark"])
        assert drawn[name] != drawn[f"{name}_dark"]
        assert max(size(drawn[name])) <= 1760  # 16 inches at 110 dpi
    assert size(drawn["confusion"])[0] > 450


def test_a_dark_plot_is_laid_out_as_the_light_one():
    given = evaluation()
    drawn = plots.pictures(**given)
    labels, winner = given["labels"], given["winner"]
    predicted = given["predictions"][winner].predicted
    alone = {
        "curves": plots.draw_curves(given["history"], given["l2_path"], plot_style.DARK),
        "confusion": plots.draw_confusion(labels, predicted, given["classes"], plot_style.DARK),
        "reliability": plots.draw_reliability(labels, given["predictions"], plot_style.DARK),
        "recall": plots.draw_recall(given["metrics"], winner, plot_style.DARK),
    }
    assert [name for name, figure in alone.items() if plot_style.png(figure) != drawn[f"{name}_dark"]] == []


def test_one_mistake_among_thousands_shows_in_the_confusion_matrix():
    labels = np.repeat(np.arange(50), 200)
    predicted = labels.copy()
    perfect = plot_style.png(plots.draw_confusion(labels, predicted, [str(c) for c in range(50)]))
    predicted[0] = 49
    once = plot_style.png(plots.draw_confusion(labels, predicted, [str(c) for c in range(50)]))
    before, after = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int) for png in (perfect, once))
    changed = np.abs(before - after).max(axis=2)
    assert (changed > 40).sum() > 100  # a cell's worth of clearly another colour


def test_curves_without_fine_tuning_show_the_head_alone():
    given = evaluation(epochs=0)
    alone = drawn_size(plots.draw_curves(given["history"], given["l2_path"]))
    both = drawn_size(plots.draw_curves(evaluation()["history"], given["l2_path"]))
    assert alone[0] < both[0]


def test_curves_of_one_epoch_and_one_strength_are_drawn():
    given = evaluation(epochs=1)
    assert drawn_size(plots.draw_curves(given["history"], given["l2_path"][:1]))
    assert drawn_size(plots.draw_curves(given["history"], []))


def test_the_recall_plot_shows_the_twenty_worst_classes():
    many, few = evaluation(60, 600), evaluation(21, 600)  # 59 and 20 classes with images
    heights = [drawn_size(plots.draw_recall(one["metrics"], "finetuned"))[1] for one in (many, few)]
    assert heights[0] == heights[1]
    assert drawn_size(plots.draw_recall(evaluation(3, 50)["metrics"], "head"))[1] < heights[0]


@pytest.mark.parametrize("name", ["$\\frac{$", "two\nlines", *slow("$5 or $6", "_x^", "<b>", "a" * 200)])
def test_class_names_are_drawn_as_they_are_and_never_as_formulas(name):
    given = evaluation(3, classes=["plain", name, name + "!"])
    given["history"]["stage"] = name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plots.pictures(**given)


def test_the_plots_of_a_perfect_model_are_drawn():
    given = evaluation(3, 30)
    sure = np.eye(3, dtype=np.float32)[given["labels"]]
    given["predictions"] = {model: Predictions.of(sure, given["labels"]) for model in ("head", "finetuned")}
    scored = metrics.score(given["labels"], sure, np.full(30, "field"), given["classes"])
    assert plots.pictures(**given | {"metrics": {"head": scored, "finetuned": scored}})


def test_drawing_does_not_change_matplotlibs_global_state():
    before = json.dumps(dict(mpl.rcParams), default=str)
    plots.pictures(**evaluation())
    assert json.dumps(dict(mpl.rcParams), default=str) == before
    plt = pytest.importorskip("matplotlib.pyplot")
    assert plt.get_fignums() == []
