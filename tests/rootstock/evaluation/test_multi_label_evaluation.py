"""An evaluation of models for any number of classes per image: all of its files, and the model that it leaves."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import rootstock
from rootstock.dataset import label_sets, tables
from rootstock.evaluation import challenge, label_issues
from rootstock.evaluation.model_pair import ModelPair
from rootstock.features.reader import Features
from rootstock.system.errors import SourceError
from rootstock.training import thresholds
from tests.evaluations import run
from tests.shapes import SHAPES
from tests.shapes_dataset import PARAMS, shapes_dataset, shapes_evaluated, shapes_inputs

NAMES = list(SHAPES)


@pytest.fixture(scope="module")
def done(base):
    return shapes_evaluated(base)


@pytest.fixture(scope="module")
def answers(done):
    return pd.read_parquet(done.report / "predictions.parquet")


def read(path):
    return json.loads(path.read_text())


def test_fine_tuning_learns_what_a_constant_answer_cannot(done):
    test = done.found.test
    assert done.found.choice.winner == "finetuned"
    assert test["accuracy"]["value"] > test["constant"]["accuracy"] + 0.15
    assert test["average_precision"]["value"] > 0.75


def test_the_metric_of_experiments_is_the_winner_on_validation_with_map(done):
    metric, validation = read(done.report / "metrics.json"), read(done.report / "validation.json")
    own = validation[metric["winner"]]
    assert metric["accuracy"] == own["accuracy"]["value"] and metric["map"] == own["average_precision"]["value"]
    assert "balanced" not in metric


def test_predictions_are_the_classes_whose_probability_reaches_their_threshold(done, answers):
    described = read(done.model / "model.json")
    cuts = np.float32([described["thresholds"][name] for name in NAMES])
    for split in ("val", "test"):
        own = answers[answers["split"] == split]
        chances = np.stack(own["finetuned"])
        assert label_sets.matrix(own["finetuned_predicted"], NAMES).tolist() == (chances >= cuts).tolist()
        has = label_sets.matrix(own["label"], NAMES)
        of_labels = np.where(has, chances, 1 - chances)
        means = np.exp(np.log(of_labels).mean(axis=1))
        assert own["finetuned_label_probability"].to_numpy() == pytest.approx(means, rel=1e-4)
    val = answers[answers["split"] == "val"]
    chosen = thresholds.choose(np.stack(val["finetuned"]), label_sets.matrix(val["label"], NAMES))
    assert chosen == pytest.approx(cuts)


def test_the_model_predicts_alone_what_was_measured(base, done, answers):
    small = shapes_dataset(base)
    rows = small.manifest.set_index("image_id").loc[answers["image_id"][:20]]
    found = rootstock.load_model(done.model).predict(
        [small.source.parents[1] / row["domain"] / row["path"] for _, row in rows.iterrows()]
    )
    for one, (_, answer) in zip(found, answers.iterrows(), strict=False):
        assert [one.probabilities[name] for name in NAMES] == pytest.approx(answer["finetuned"], abs=2e-3)
        assert one.label == label_sets.join(one.labels)
        if np.abs(np.array(answer["finetuned"]) - [0.5] * 3).min() > 0.3:
            assert one.label == answer["finetuned_predicted"]


def test_plots_for_dvc_have_every_class_and_none(done):
    confusion = pd.read_csv(done.report / "plots" / "confusion.csv")
    assert set(confusion["actual"]) | set(confusion["predicted"]) <= {*NAMES, "(none)"}
    assert list(pd.read_csv(done.report / "plots" / "per_class.csv")["class"]) == NAMES


def test_the_report_says_what_accuracy_is_and_shows_thresholds(done):
    page = (done.report / "report.html").read_text()
    for said in ("the overlap of its predicted and true labels", "mean average precision (mAP)", "All labels right",
                 "Average precision", "Threshold", "not given exactly the right labels", "(none)"):  # fmt: skip
        assert said in page, said
    assert "Balanced accuracy" not in page


def test_the_model_card_says_that_an_image_may_have_any_number_of_classes(done):
    card = (done.model / "README.md").read_text()
    assert "multi-label" in card and "**Labels**: any number per image" in card
    assert "type: accuracy" not in card


def test_repeated_splits_and_the_learning_curve_measure_the_overlap(done):
    assert 0.2 < done.found.repeated.mean < 1
    assert all(0 < value <= 1 for values in done.found.learning_curve.accuracy for value in values)


def test_another_evaluation_writes_the_same_bytes(base, done, tmp_path):
    again = run(shapes_inputs(base), tmp_path, PARAMS)
    first = done.files(done.report)
    assert {name for name, data in again.files(again.report).items() if data != first[name]} == set()
    assert again.files(again.model) == done.files(done.model)


# Wrong labels


def test_most_turned_labels_are_suspected_first_with_the_set_that_fits_better():
    """Simulated: of 1,000 images with ten classes, one label each of 50 is turned."""
    draw, names = np.random.default_rng(0), list("abcdefghij")
    has = draw.random((1000, 10)) < 0.4
    chances = 1 / (1 + np.exp(-3 * (2 * has - 1) - draw.normal(size=has.shape)))
    wrong = draw.choice(1000, 50, replace=False)
    turned = has.copy()
    turned[wrong, draw.integers(0, 10, 50)] ^= True
    texts = [[label_sets.join(np.array(names)[own]) for own in labels] for labels in (has, turned)]
    rows = pd.DataFrame({"image_id": range(1000), "label": texts[1], "class_index": tables.NO_INDEX})
    rows = rows.assign(**dict.fromkeys(("source", "path", "domain", "split"), ""))
    found = label_issues.find_held_out([(rows, chances.astype(np.float32))], names)
    assert len(found) < 75
    assert len(set(found["image_id"][:50]) & set(wrong)) >= 40
    right = [
        texts[0][image] == suggested for image, suggested in zip(found["image_id"], found["suggested"], strict=True)
    ]
    assert np.mean(right) > 0.8


# Champion and challenger


@pytest.fixture
def compared(base, done, tmp_path):
    """Compare a champion that knows two of the three classes with a challenger that knows all."""
    small = shapes_dataset(base)
    manifest = small.manifest
    test = tables.in_shard_order(manifest, "test")
    folders = {}
    for name, classes, wrong in (("champion", NAMES[:2], 5), ("challenger", NAMES, 2)):
        folder = tmp_path / name
        folder.mkdir()
        described = {"kind": "head", "classes": classes, "backbone": {}, "temperature": 1.0, "digest": name}
        (folder / "model.json").write_text(json.dumps(described))
        has = label_sets.matrix(test["label"], classes)
        has[:wrong, 0] ^= True
        predicted = [label_sets.join(np.array(classes)[own]) for own in has]
        pd.DataFrame({"image_id": test["image_id"], "head_predicted": predicted}).to_parquet(
            tmp_path / f"{name}.parquet"
        )
        folders[name] = folder
    table = challenge.predict_both(
        folders["champion"], tmp_path / "champion.parquet", tmp_path / "challenger.parquet", small.dataset,
        small.images, tmp_path, folders["challenger"],
    )  # fmt: skip
    return test, table


def test_models_are_compared_by_images_whose_labels_are_right_of_the_classes_that_the_champion_knows(compared):
    test, table = compared
    known = table[table["known"]]
    assert known["image_id"].tolist() == test["image_id"].tolist()
    assert (~known["champion"]).sum() == 5 and (~known["challenger"]).sum() == 2


def test_a_class_that_is_new_to_the_champion_has_a_row_for_each_image_that_has_it(compared):
    test, table = compared
    new = table[~table["known"]]
    having = test["image_id"][label_sets.matrix(test["label"], NAMES)[:, 2]]
    assert sorted(new["image_id"]) == sorted(having) and set(new["label"]) == {NAMES[2]}
    assert new["challenger"].all() and not new["champion"].any()


def test_the_pair_refuses_a_head_of_another_kind(base, tmp_path):
    inputs = shapes_inputs(base)
    described = read(inputs.head / "head.json")
    del described["multi_label"]
    shutil.copytree(inputs.head, tmp_path / "head")
    (tmp_path / "head" / "head.json").write_text(json.dumps(described))
    with pytest.raises(SourceError, match="run train_head again"):
        ModelPair(replace(inputs, head=tmp_path / "head"), PARAMS)


def test_features_have_the_labels_of_some_classes_where_these_are_named(base):
    small, inputs = shapes_dataset(base), shapes_inputs(base)
    [key] = [path for path in inputs.features.iterdir() if path.is_dir()]
    rows = tables.in_shard_order(small.manifest, "val")
    whole = Features(key, rows, NAMES).keep()
    part = whole.subset(rows, NAMES[1:])
    assert part.labels.tolist() == whole.labels[:, 1:].tolist() == label_sets.matrix(rows["label"], NAMES[1:]).tolist()
    assert np.concatenate([labels for _, labels in part]).tolist() == part.labels.tolist()
