"""Labels that are probably wrong: found by heads that have not seen them, shown worst first, and never dropped."""

import numpy as np
import pandas as pd
import pytest

from rootstock.evaluation import label_issues
from rootstock.evaluation.mistakes import worst_labels
from rootstock.evaluation.model_pair import ModelPair
from rootstock.evaluation.repeated_splits import draw_folds
from rootstock.features.reader import Features
from rootstock.training import calibration, logistic
from tests.evaluations import PARAMS
from tests.simulated_features import dataset, separable

CLASSES = ["class 0", "class 1", "class 2", "class 3"]


def with_turned_labels(tmp_path, images: int = 400, turned: int = 20, spread: float = 1.5):
    """Return features, a manifest in which some labels are wrong, the ids of these images, and their right labels."""
    right = np.arange(images) % 4
    rng = np.random.default_rng(0)
    wrong = rng.choice(images, turned, replace=False)
    labels = right.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, 4, turned)) % 4
    features = 6 * np.eye(4)[right] + rng.normal(0, spread, (images, 4))
    [folder], manifest = dataset(tmp_path, labels, features, np.arange(images))
    return folder, manifest, set(manifest["image_id"].iloc[wrong]), dict(zip(manifest["image_id"], right, strict=True))


def find(folder, manifest, seed=0) -> pd.DataFrame:
    return label_issues.find(folder, manifest, CLASSES, 10.0, seed)


def test_most_turned_labels_are_among_as_many_suspects_with_the_right_label_as_suggestion(tmp_path):
    folder, manifest, wrong, right = with_turned_labels(tmp_path)
    found = find(folder, manifest)
    worst = found.head(len(wrong))
    assert len(wrong & set(worst["image_id"])) >= 0.8 * len(wrong)
    hits = found[found["image_id"].isin(wrong)]
    suggested = hits["suggested"].str.removeprefix("class ").astype(int)
    assert np.mean(suggested.to_numpy() == hits["image_id"].map(right).to_numpy()) > 0.9
    assert found["label_probability"].is_monotonic_increasing
    assert list(found) == label_issues.COLUMNS


def test_a_table_of_right_labels_has_hardly_a_suspect(tmp_path):
    folder, manifest, _, _ = with_turned_labels(tmp_path, turned=0, spread=1.0)
    assert len(find(folder, manifest)) <= 4


def test_the_result_depends_on_the_seed_alone(tmp_path):
    folder, manifest, _, _ = with_turned_labels(tmp_path)
    shuffled = manifest.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(find(folder, manifest), find(folder, shuffled))
    assert not find(folder, manifest, seed=1).equals(find(folder, manifest))


def test_no_image_is_judged_by_a_head_that_has_seen_it_or_its_group(tmp_path):
    """Uninformative features, each image in four copies: a head that has seen a copy would know the label."""
    rng = np.random.default_rng(0)
    groups = np.arange(400) // 4
    labels = rng.integers(0, 4, 100)[groups]
    [folder], manifest = dataset(tmp_path, labels, rng.normal(size=(100, 60))[groups], groups)
    fold = draw_folds(labels, groups, 0)
    found = label_issues.predict_out_of_fold(folder, manifest, fold, list("abcd"), 1.0)
    assert found.shape == (400, 4) and found.sum(1) == pytest.approx(1, abs=1e-5)
    assert (found.argmax(1) == labels).mean() < 0.45


def test_a_class_that_is_in_one_fold_alone_has_no_probability_in_it(tmp_path):
    labels = np.append(np.arange(120) % 3, [3, 3, 3])
    groups = np.append(np.arange(120), [120, 120, 120])
    [folder], manifest = dataset(tmp_path, labels, separable(labels, 4), groups)
    fold = draw_folds(labels, groups, 0)
    found = label_issues.predict_out_of_fold(folder, manifest, fold, list("abcd"), 1.0)
    assert (found[-3:, 3] < 1e-6).all() and np.isfinite(found).all()
    assert set(find(folder, manifest)["image_id"]) <= set(manifest["image_id"])


@pytest.mark.parametrize("others", [1, 3])
def test_images_of_a_class_that_is_a_single_group_are_not_judged_as_no_other_head_knows_it(tmp_path, others):
    labels = np.append(np.arange(60) % others, np.full(20, others))
    groups = np.append(np.arange(60), np.full(20, 60))
    [folder], manifest = dataset(tmp_path, labels, separable(labels, others + 1), groups)
    found = label_issues.find(folder, manifest, CLASSES[: others + 1], 1.0, 0)
    assert not set(found["image_id"]) & set(manifest["image_id"].iloc[60:])
    assert len(found) <= 3


def test_a_class_that_one_fold_alone_has_changes_nothing_about_the_others(tmp_path):
    folder, manifest, wrong, _ = with_turned_labels(tmp_path / "without", turned=20)
    alone = find(folder, manifest)
    labels = np.append(manifest["class_index"], np.full(10, 4))
    features = np.concatenate([x for x, _ in Features(folder, manifest)])
    features = np.concatenate([features, np.full((10, 4), 20.0)])
    [folder], manifest = dataset(
        tmp_path / "with", labels, features, np.append(np.arange(len(features) - 10), [900] * 10)
    )
    found = label_issues.find(folder, manifest, [*CLASSES, "rare"], 10.0, 0)
    assert abs(len(found) - len(alone)) <= 3
    assert found["label_probability"].min() == pytest.approx(alone["label_probability"].min(), abs=0.02)
    assert len(wrong & set(found["image_id"].head(20))) >= 16


def test_heads_that_know_nothing_suspect_no_label(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 200
    [folder], manifest = dataset(tmp_path, labels, rng.normal(size=(600, 20)), np.arange(600))
    assert label_issues.find(folder, manifest, [f"class {number}" for number in range(200)], 10.0, 0).empty


@pytest.mark.parametrize("images", [3, 4])
def test_with_fewer_groups_than_folds_nothing_is_suspected(tmp_path, images):
    labels = np.arange(images) % 2
    [folder], manifest = dataset(tmp_path, labels, separable(labels, 2), np.arange(images))
    found = label_issues.find(folder, manifest, CLASSES[:2], 1.0, 0)
    assert found.empty and list(found) == label_issues.COLUMNS


def test_of_many_images_some_held_out_ones_are_judged_by_a_model_that_has_not_seen_them(tmp_path, monkeypatch):
    folder, manifest, wrong, _ = with_turned_labels(tmp_path, images=800, turned=60)
    manifest["split"] = np.where(np.arange(800) // 4 % 2, "train", "test")
    train, test = (Features(folder, manifest[manifest["split"] == split]) for split in ("train", "test"))
    chosen = logistic.fit_logistic_path(train, test, CLASSES, [10.0])
    rows = manifest[manifest["split"] == "test"]
    probabilities = calibration.probabilities(np.concatenate([chosen.logits(x) for x, _ in test]), 1.0)
    halves = [(rows[:150], probabilities[:150]), (rows[150:], probabilities[150:])]
    whole = label_issues.find_held_out(halves, CLASSES)
    assert list(whole) == label_issues.COLUMNS
    hits, wrong = wrong & set(whole["image_id"]), wrong & set(rows["image_id"])
    assert len(wrong) >= 15 and len(hits) >= 0.6 * len(wrong) and len(hits) >= 0.8 * len(whole)
    monkeypatch.setattr(label_issues, "MOST_PROBABILITIES", 4 * 300)
    monkeypatch.setattr(label_issues, "MOST_HELD_OUT", 4 * 100)
    drawn = label_issues.draw(150, 800, 4, seed=0)
    assert len(set(drawn)) == 100 and (np.diff(drawn) > 0).all() and drawn.max() < 150
    assert label_issues.describe_judged(800, 4) == "of up to 100 validation and as many test images"
    assert not len(label_issues.draw(150, 300, 4, seed=0))  # all can be judged


# In the evaluation


def test_the_evaluation_lists_the_suspects_of_all_splits_and_shows_the_worst(inputs, done):
    listed = pd.read_csv(done.report / "label_issues.csv", dtype={"label": str})
    assert list(listed) == label_issues.COLUMNS
    assert listed["image_id"].tolist() == done.found.label_issues["image_id"].tolist()
    pair = ModelPair(inputs, PARAMS)
    shown = worst_labels(pair, done.found.label_issues, 2)
    assert [suspect.path for suspect in shown] == (listed["source"] + "/" + listed["path"]).head(2).tolist()
    assert all(suspect.thumbnail.startswith(b"RIFF") and suspect.label != "" for suspect in shown)
    page = (done.report / "report.html").read_text()
    assert "Labels to check" in page
    assert f"{len(listed)} images, of all splits, have a label that is probably wrong" in page if len(listed) else True
