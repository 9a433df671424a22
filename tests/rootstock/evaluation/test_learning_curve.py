"""A learning curve: heads on some of the images, and whether more images would help."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from rootstock.config.params import Head as Settings
from rootstock.dataset import tables
from rootstock.evaluation import learning_curve, learning_curve_plot
from rootstock.evaluation.learning_curve import LearningCurve
from rootstock.features.reader import Features
from rootstock.training import head, heads
from tests.simulated_features import dataset, simulated

CLASSES = ["a", "b", "c"]


def measured(tmp_path, n=600, per_group=1, apart=1.0, kind="logistic", d=8):
    """Measure a curve on simulated features, of which the last third is for validation."""
    drawn = simulated(n, d=d, apart=apart)
    folders, manifest = dataset(tmp_path, drawn.labels, drawn.x, np.arange(n) // per_group)
    manifest.loc[manifest.index >= 2 * n // 3, "split"] = "val"
    train, val = (Features(folders[0], manifest[manifest["split"] == split]) for split in ("train", "val"))
    settings = Settings(kind=kind, l2=(10.0, 1.0))
    chosen = heads.fit(train, val, CLASSES, settings, np.arange(len(val))).head
    return learning_curve.measure(folders[0], manifest, CLASSES, chosen, settings, 0), chosen, val


@pytest.mark.parametrize("kind", ["logistic", "prototype"])
def test_the_curve_ends_with_the_accuracy_of_the_head_itself(tmp_path, kind):
    curve, chosen, val = measured(tmp_path, kind=kind)
    assert curve.images == pytest.approx((40, 100, 200, 400), rel=0.06)
    assert len(set(curve.accuracy[-1])) == 1
    assert curve.accuracy[-1][0] == pytest.approx(head.evaluate(chosen, val)[1], abs=0.006)
    assert [len(found) for found in curve.accuracy] == [5, 5, 5, 5] and len(set(curve.accuracy[0])) > 1
    assert list(curve.as_table().columns) == ["images", "seed", "accuracy"] and len(curve.as_table()) == 20


def test_hard_classes_in_many_dimensions_would_profit_from_more_images_and_easy_ones_would_not(tmp_path):
    hard, *_ = measured(tmp_path / "hard", d=150, apart=0.25)
    easy, *_ = measured(tmp_path / "easy", apart=6)
    assert hard.describe().startswith("More images like these would help: ")
    assert easy.describe().startswith("More images like these would change little: ")
    assert "; with 800 about " in hard.describe()


def test_groups_are_drawn_as_a_whole_and_each_class_keeps_one(tmp_path):
    drawn = simulated(90)
    _, manifest = dataset(tmp_path, np.sort(drawn.labels), drawn.x, np.arange(90) // 5)
    groups, labels = tables.group_numbers(manifest), manifest["class_index"].to_numpy(np.int64)
    for seed in range(5):
        kept = manifest[learning_curve._draw(groups, labels, 0.25, seed)]
        assert set(kept["class_index"]) == {0, 1, 2}
        assert (kept.groupby("group_id").size() == 5).all()
    assert learning_curve._draw(groups, labels, 1.0, 0).all()


def test_a_class_that_comes_second_in_all_its_groups_is_drawn_too(tmp_path):
    drawn = simulated(900)
    groups = np.arange(900) // 6
    labels = np.where(np.arange(900) % 6 < 3, 0, 1)  # each patient has normal images first, then others
    labels[(groups % 30 == 0) & (np.arange(900) % 6 == 5)] = 2  # and five of them a rare one
    folders, manifest = dataset(tmp_path, labels, drawn.x, groups)
    manifest.loc[manifest.index >= 600, "split"] = "val"
    train, val = (Features(folders[0], manifest[manifest["split"] == split]) for split in ("train", "val"))
    settings = Settings(l2=(1.0,))
    chosen = heads.fit(train, val, CLASSES, settings, np.arange(len(val))).head
    curve = learning_curve.measure(folders[0], manifest, CLASSES, chosen, settings, 0)
    assert curve is not None and len(curve.accuracy) == 4


def test_few_groups_have_no_curve(tmp_path):
    assert measured(tmp_path, n=90, per_group=10)[0] is None


@pytest.mark.parametrize(
    ("most", "products", "images"),
    [(150, 10**9, (40, 100, 400)), (60, 10**9, (15, 60, 400)), (10**9, 8 * 3 * 150, (40, 100, 400))],
)
def test_of_many_images_heads_are_trained_on_few_and_the_last_point_is_the_head_that_was_chosen(
    tmp_path, monkeypatch, most, products, images
):
    monkeypatch.setattr(learning_curve, "MOST_IMAGES", most)
    monkeypatch.setattr(learning_curve, "MOST_PRODUCTS", products)
    curve, chosen, val = measured(tmp_path)
    assert curve.images == pytest.approx(images, rel=0.1)
    assert curve.accuracy[-1] == (head.evaluate(chosen, val)[1],) * 2 and len(set(curve.accuracy[0])) == 2


def test_of_many_validation_images_some_are_enough(tmp_path, monkeypatch):
    everything, *_ = measured(tmp_path / "all")
    monkeypatch.setattr(learning_curve, "MOST_VAL_IMAGES", 100)
    some, *_ = measured(tmp_path / "some")
    assert some.accuracy != everything.accuracy
    assert np.mean(some.accuracy[-1]) == pytest.approx(np.mean(everything.accuracy[-1]), abs=0.1)


@given(scale=st.floats(0.1, 1), exponent=st.floats(0.05, 0.9))
def test_a_power_law_is_extrapolated_exactly(scale, exponent):
    images = np.array([100, 250, 500, 1000])
    accuracy = 1 - scale * images**-exponent
    expected = 1 - scale * 2000**-exponent
    assert learning_curve.extrapolate(images, accuracy, 10**6) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_an_extrapolated_accuracy_is_no_lower_than_the_last_and_no_higher_than_1(accuracy):
    found = learning_curve.extrapolate((10, 25, 50, 100), accuracy, 30)
    assert accuracy[-1] <= found + 1e-12 <= 1 + 1e-12


def test_the_picture_is_drawn_in_both_themes_and_not_without_a_curve():
    curve = LearningCurve((10, 100), ((0.5, 0.6), (0.8, 0.8)), (0.85, 0.9))
    assert list(learning_curve_plot.pictures(curve)) == ["learning_curve", "learning_curve_dark"]
    assert learning_curve_plot.pictures(None) == {}


def test_classes_of_one_training_image_each_have_no_curve(tmp_path):
    drawn = simulated(240)
    labels = np.arange(240) % 120
    folders, manifest = dataset(tmp_path, labels, drawn.x, np.arange(240))
    manifest.loc[manifest.index >= 120, "split"] = "val"
    classes = [f"class {number}" for number in range(120)]
    train, val = (Features(folders[0], manifest[manifest["split"] == split]) for split in ("train", "val"))
    settings = Settings(l2=(1.0,))
    chosen = heads.fit(train, val, classes, settings, np.arange(len(val))).head
    assert learning_curve.measure(folders[0], manifest, classes, chosen, settings, 0) is None
