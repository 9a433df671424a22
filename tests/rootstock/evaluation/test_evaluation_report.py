"""What an evaluation puts into its report: mistakes, warnings, repeated splits, and escaped names."""

import dataclasses
import html
import json
import shutil

import numpy as np
import pytest

from rootstock.backbones import backbones
from rootstock.evaluation import mistakes
from rootstock.evaluation.mistakes import worst_mistakes
from rootstock.evaluation.model_pair import Inputs, ModelPair
from rootstock.evaluation.scored import Scored
from rootstock.features import extraction, reader
from rootstock.training import calibration, head, logistic
from rootstock.training.course import Course, save_course
from tests.evaluations import PARAMS, run
from tests.small_dataset import (
    CLASSES,
    classifier_from,
    draw,
    ingested,
    small_backbone,
    small_dataset,
    small_head,
)


def test_the_mistakes_shown_are_test_images_the_winner_got_wrong_worst_first(inputs, done, predictions, base):
    pair = ModelPair(inputs, PARAMS)
    rows = pair.rows("test")
    stored = predictions.set_index("image_id").loc[rows["image_id"]]
    winner = done.found.choice.winner
    scored = Scored.of(rows, {winner: np.stack(stored[winner])})
    manifest = small_dataset(base).manifest.set_index(["source", "path"])
    for model in (winner,):
        wrong = (scored.predictions[model].predicted != scored.labels).sum()
        shown = worst_mistakes(pair, scored, model, 1000)
        assert len(shown) == wrong > 1
        assert worst_mistakes(pair, scored, model, 2) == shown[:2]
        assert [mistake.confidence for mistake in shown] == sorted((m.confidence for m in shown), reverse=True)
        for mistake in shown:
            row = manifest.loc[tuple(mistake.path.split("/", 1))]
            probabilities = stored.loc[row["image_id"], model]
            assert row["split"] == "test" and mistake.actual == row["label"] != mistake.predicted
            assert mistake.predicted == CLASSES[probabilities.argmax()]
            assert mistake.confidence == probabilities.max() and mistake.domain == row["domain"]
            assert mistake.thumbnail.startswith(b"RIFF")
    assert worst_mistakes(pair, scored, winner, 0) == []


def test_the_report_shows_the_worst_mistakes_and_is_one_file(done):
    page = (done.report / "report.html").read_text()
    assert page.count("data:image/png") >= 5 and "shufflenet_v2_x0_5 on field, studio" in page
    assert (
        "http://" not in page.replace("http://www.w3.org", "") and page.count("<script") == 2
    )  # the page's own, and the points of the map


def test_names_given_by_users_are_escaped_in_the_report_and_unchanged_elsewhere(base, tmp_path):
    odd = ['<b>"&', "<script>alert(1)", "Ünïcode"]
    for label, name in zip(CLASSES, odd, strict=True):
        (draw(tmp_path / "drawn", images=8) / label).rename(tmp_path / "drawn" / name)
        for other in CLASSES:
            shutil.rmtree(tmp_path / "drawn" / other, ignore_errors=True)
    domain = "<img src=x onerror=alert(1)>"
    small = ingested(tmp_path, (tmp_path / "drawn", domain))
    backbone = backbones.load(small_backbone(base))
    key = extraction.extract(backbone, PARAMS.extract, small.images, tmp_path / "features").key
    train, val = (reader.Features(tmp_path / "features" / key, small.split(split)) for split in ("train", "val"))
    head.save(logistic.fit_logistic_path(train, val, sorted(odd), (10.0,)), tmp_path / "head", {})
    network = classifier_from(tmp_path / "head", small_backbone(base))
    save_course(network, Course(), tmp_path / "finetuned")  # and no stage of fine-tuning
    folders = (tmp_path / name for name in ("features", "head", "finetuned"))
    done = run(Inputs(small.images, small.dataset, small_backbone(base), *folders), tmp_path)
    page = (done.report / "report.html").read_text()
    assert (
        page.count("<script") == 1
        and "<script>alert" not in page
        and "<img src=x" not in page
        and "<b>&quot;" not in page
        and '<b>"&' not in page
    )
    assert html.escape(domain) in page and html.escape(odd[1]) in page
    assert done.found.choice.winner == "head"  # the other is the same
    assert set(done.found.test["classes"]) == set(odd) and list(done.found.test["domains"]) == [domain]
    assert json.loads((done.model / "model.json").read_text(encoding="utf-8"))["classes"] == sorted(odd)


def test_too_few_test_images_and_a_temperature_at_its_bound_are_reported_and_logged(done, inputs, tmp_path, caplog):
    page = (done.report / "report.html").read_text()
    assert page.index("There are only 24 test images") < page.index('<section id="training">')
    assert "Fewer than 30 test images: checks (8), rings (8), stripes (8)." in page
    assert "temperature" not in page.split("Warning:")[1].split("</p>")[0]
    assert calibration.at_bound(calibration.TEMPERATURES[0]) and calibration.at_bound(calibration.TEMPERATURES[1])
    assert not any(calibration.at_bound(temperature) for temperature in (0.06, 1.0, 19.0))
    run(inputs, tmp_path)
    assert "There are only 24 test images" in caplog.text


def test_repeated_splits_are_measured_if_configured_and_suggested_where_test_images_are_few(done, inputs, tmp_path):
    offer = "With evaluate.repeats: 5, the head is measured on repeated splits"
    assert offer in (done.report / "report.html").read_text()
    assert "repeated_splits" not in json.loads((done.report / "test.json").read_text())
    evaluated = PARAMS.evaluate.model_copy(update={"repeats": 2})
    again = run(inputs, tmp_path, PARAMS.model_copy(update={"evaluate": evaluated}))
    page = (again.report / "report.html").read_text()
    assert "Repeated splits, frozen-feature head:" in page and offer not in page
    found = json.loads((again.report / "test.json").read_text())["repeated_splits"]
    assert found["images"] == 120 and len(found["accuracies"]) == 2 and max(found["accuracies"]) < 1
    assert found["mean"] == pytest.approx(np.mean(found["accuracies"]))
    metrics_of = [json.loads((one.report / "metrics.json").read_text()) for one in (done, again)]
    assert metrics_of[0] == metrics_of[1]  # nothing is chosen by it


def test_warnings_of_head_and_fine_tuning_are_in_the_report(inputs, base, tmp_path):
    warned = dataclasses.replace(head.load(small_head(base)), warnings=["The head has not converged."])
    head.save(warned, tmp_path / "head", {})
    done = run(dataclasses.replace(inputs, head=tmp_path / "head"), tmp_path)
    assert "The head has not converged." in (done.report / "report.html").read_text()


def test_no_more_thumbnails_are_shown_than_the_page_has_room_for(inputs, done, predictions, monkeypatch):
    pair = ModelPair(inputs, PARAMS)
    rows = pair.rows("test")
    winner = done.found.choice.winner
    scored = Scored.of(rows, {winner: np.stack(predictions.set_index("image_id").loc[rows["image_id"], winner])})
    every = worst_mistakes(pair, scored, winner, 1000)
    monkeypatch.setattr(mistakes, "BUDGET", sum(len(one.thumbnail) for one in every[:3]))
    assert worst_mistakes(pair, scored, winner, 1000) == every[:3]


def test_near_duplicates_and_the_worst_mistakes_of_each_class_have_small_thumbnails(inputs, done, predictions):
    pair = ModelPair(inputs, PARAMS)
    pair.manifest = pair.manifest.assign(group_id=["together"] * 3 + [str(n) for n in range(len(pair.manifest) - 3)])
    assert [len(group) for group in mistakes.near_duplicates(pair)] == [3]
    pair.summary["groups"] = {}  # named ones: what is together need not look alike
    assert mistakes.near_duplicates(pair) == []
    rows, winner = pair.rows("test"), done.found.choice.winner
    scored = Scored.of(rows, {winner: np.stack(predictions.set_index("image_id").loc[rows["image_id"], winner])})
    found = mistakes.worst_of_classes(pair, scored, winner, done.found.test["classes"])
    wrong = rows["label"].iloc[scored.mistakes(winner)].value_counts()
    assert {label: len(pictures) for label, pictures in found.items()} == wrong.clip(upper=3).to_dict()


def test_confusions_are_counted_the_most_frequent_first(inputs):
    rows = ModelPair(inputs, PARAMS).rows("test").assign(class_index=[0] * 12 + [1] * 8 + [2] * 4)
    answers = np.array([1] * 3 + [2] * 2 + [0] * 7 + [1] * 8 + [0] * 3 + [2])
    found = mistakes.confusions(Scored.of(rows, {"head": np.eye(3)[answers]}), "head", CLASSES)
    assert [(one.actual, one.predicted, one.images) for one in found] == [
        ("stripes", "checks", 3), ("checks", "rings", 3), ("checks", "stripes", 2),
    ]  # fmt: skip
    assert found[0].share == 0.75
