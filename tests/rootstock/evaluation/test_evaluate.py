"""Evaluation: the choice is made on validation before the test split is read, and files are reproducible."""

import dataclasses
import json
import re
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rootstock.backbones import backbones
from rootstock.dataset import shards
from rootstock.evaluation import evaluate, kept_features, measured_models, model_pair, thumbnails, why
from rootstock.evaluation.evaluate import Kept
from rootstock.evaluation.model_selection import MODELS, choose
from rootstock.features import engines, feature_extractor, reader
from rootstock.images import pixel_store
from rootstock.images.array_store import ArrayStore
from rootstock.system.errors import SourceError
from rootstock.training import classifier, head
from rootstock.training.course import Course, save_course
from rootstock.training.head import Head
from tests.evaluations import ALONE, PARAMS, run, timings
from tests.rootstock.evaluation.test_verdict import measured
from tests.small_dataset import (
    CLASSES,
    small_dataset,
    small_features,
    small_head,
)

TIMED = {"timings.json", "report.html"}
FILES = {
    "metrics.json",
    "validation.json",
    "test.json",
    "predictions.parquet",
    "label_issues.csv",
    "timings.json",
    "report.html",
} | {
    f"plots/{name}.csv"
    for name in ("confusion", "history", "l2_path", "learning_curve", "per_class", "reliability", "size")
}


# The test split


def test_the_test_split_is_not_read_before_the_choice(inputs, base, tmp_path, monkeypatch):
    small = small_dataset(base)
    split_of = small.manifest.set_index(["shard", "offset"])["split"]
    events = []

    class NotingReader(shards.Reader):
        def read(self, shard: str, offset: int, size: int) -> bytes:
            events.append(split_of[shard, offset])
            return super().read(shard, offset, size)

    class NotingFeatures(reader.Features):
        def _stream(self):
            events.extend(split_of[place] for place in zip(self.rows["shard"], self.rows["offset"], strict=True))
            return super()._stream()

    def noting(*given):
        events.append("the choice")
        return choose(*given)

    for module in (thumbnails, why, feature_extractor):
        monkeypatch.setattr(module, "Reader", NotingReader)
    monkeypatch.setattr(model_pair, "Features", NotingFeatures)
    monkeypatch.setattr(evaluate, "choose", noting)
    run(inputs, tmp_path)
    chosen = events.index("the choice")
    assert events[:chosen].count("val") == 2 * 24 and set(events[:chosen]) == {"train", "val"}
    assert events[chosen + 1 :].count("test") >= 24


def test_the_choice_and_the_model_do_not_depend_on_the_labels_of_test_images(inputs, done, base, tmp_path):
    shutil.copytree(inputs.dataset, tmp_path / "dataset")
    manifest = pd.read_parquet(tmp_path / "dataset/manifest.parquet")
    test = manifest["split"] == "test"
    manifest.loc[test, "class_index"] = (manifest.loc[test, "class_index"] + 1) % 3
    manifest.loc[test, "label"] = [CLASSES[index] for index in manifest.loc[test, "class_index"]]
    shutil.rmtree(tmp_path / "dataset/manifest.parquet")
    manifest.to_parquet(tmp_path / "dataset/manifest.parquet")
    other = run(dataclasses.replace(inputs, dataset=tmp_path / "dataset"), tmp_path)
    assert other.found.choice == done.found.choice and other.found.validation == done.found.validation
    assert other.found.test["log_loss"] != done.found.test["log_loss"]
    assert (other.report / "metrics.json").read_bytes() == (done.report / "metrics.json").read_bytes()
    for name in ("model.safetensors", "model.json"):
        assert (other.model / name).read_bytes() == (done.model / name).read_bytes()


def test_models_measured_on_the_same_test_images_are_counted_and_reported_from_the_second_on(inputs, base, tmp_path):
    first, again = run(inputs, tmp_path), run(inputs, tmp_path)
    assert (first.found.models, again.found.models) == (1, 1)
    assert "model measured on these" not in (again.report / "report.html").read_text()
    save_course(None, Course(), tmp_path / "finetuned")
    weaker = dataclasses.replace(head.load(inputs.head), bias=head.load(inputs.head).bias + np.float32([1, 0, 0]))
    head.save(weaker, tmp_path / "head", {})
    other = run(dataclasses.replace(inputs, head=tmp_path / "head", finetuned=tmp_path / "finetuned"), tmp_path)
    assert other.found.models == 2
    assert (
        "The 2nd model measured on these 24 test images, or most of them" in (other.report / "report.html").read_text()
    )
    assert measured_models.count(tmp_path / "measured.parquet", ["other", "images"], "model") == 1


def test_a_head_of_another_dataset_is_refused(inputs, tmp_path):
    fitted = head.load(inputs.head)
    head.save(Head(fitted.weight[:2], fitted.bias[:2], CLASSES[:2], 1.0), tmp_path / "head", {})
    with pytest.raises(SourceError, match="was trained on other classes"):
        run(dataclasses.replace(inputs, head=tmp_path / "head"), tmp_path)
    assert not (tmp_path / "report").exists() and not (tmp_path / "model").exists()


def test_only_images_that_the_fine_tuned_network_scores_are_decoded_each_once(inputs, work, tmp_path):
    run(inputs, tmp_path)
    # 72 training images for class means, 24 of validation, and the 24 test images only if the network won
    assert work.images in ((120, 120), (96, 96))


# The files


def test_a_second_evaluation_decodes_nothing_where_decoded_images_are_kept(inputs, base, work, tmp_path):
    transform, names = backbones.load(inputs.backbone).transform, shards.names(inputs.images)
    with pixel_store.opened(tmp_path / "pixels", transform, inputs.images, names, most_gb=1.0) as store:
        first, second = (
            (run(inputs, tmp_path / name, kept=Kept(images=store)), len(work.decoded)) for name in ("first", "second")
        )
    assert first[1] == second[1] >= 24  # the fine-tuned network's validation images, at least
    predicted = [(one.report / "predictions.parquet").read_bytes() for one, _ in (first, second)]
    assert predicted[0] == predicted[1]


@pytest.mark.parametrize("after", [1, 50, 90])
def test_an_evaluation_that_was_killed_computes_no_feature_twice_and_ends_with_the_same_bytes(
    inputs, work, tmp_path, monkeypatch, after
):
    class Killed(BaseException):
        pass

    group = 8  # images that are computed together
    monkeypatch.setattr(engines, "best_batch_size", lambda *_: group)
    whole = run(inputs, tmp_path / "whole")
    needed, put, done = work.images[0], ArrayStore.put, []

    def put_or_die(*given: object) -> None:
        if len(done) == after:
            raise Killed
        put(*given)
        done.append(given)

    monkeypatch.setattr(ArrayStore, "put", put_or_die)
    with pytest.raises(Killed), kept_features.opened(tmp_path / "kept", inputs, ALONE) as features:
        run(inputs, tmp_path / "first", kept=Kept(features=features))
    monkeypatch.setattr(ArrayStore, "put", put)
    before = len(work.decoded)
    with kept_features.opened(tmp_path / "kept", inputs, ALONE) as features:
        again = run(inputs, tmp_path / "again", kept=Kept(features=features))
    assert len(work.decoded) - before <= needed - after + group
    assert again.files(again.model) == whole.files(whole.model)
    different = {name for name, data in again.files(again.report).items() if whole.files(whole.report)[name] != data}
    assert different <= TIMED


def test_features_of_other_weights_are_not_taken_over(inputs, tmp_path):
    other = dataclasses.replace(inputs, finetuned=tmp_path / "other")
    shutil.copytree(inputs.finetuned, other.finetuned)
    with (other.finetuned / classifier.WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"1")
    folders = []
    for each in (inputs, other):
        with kept_features.opened(tmp_path / "kept", each, ALONE) as kept:
            folders.append(kept.folder)
    assert folders[0] != folders[1]


def test_exactly_the_listed_files_are_written(done):
    assert set(done.files(done.report)) == FILES
    assert set(done.files(done.model)) == {"model.safetensors", "model.json", "novelty.safetensors", "README.md"}


def test_metrics_json_holds_the_winners_few_validation_figures_by_which_runs_are_ranked(done):
    found = json.loads((done.report / "metrics.json").read_text())
    assert list(found) == ["winner", "accuracy", "low", "high", "balanced", "log_loss"]
    own = done.found.validation[found["winner"]]
    assert {"value": found["accuracy"], "low": found["low"], "high": found["high"]} == own["accuracy"]
    assert (found["balanced"], found["log_loss"]) == (own["balanced_accuracy"]["value"], own["log_loss"]["value"])


def test_validation_json_has_all_figures_of_both_models_and_test_json_those_of_the_winner_alone(done):
    validation, test = (json.loads((done.report / f"{name}.json").read_text()) for name in ("validation", "test"))
    assert validation == done.found.validation and list(validation) == list(MODELS)
    assert test == {"winner": done.found.choice.winner, **done.found.test}
    for own in (*validation.values(), test):
        assert (own["images"], own["groups"]) == (24, 24)
        assert list(own["domains"]) == ["field", "studio"] and list(own["classes"]) == CLASSES
        for figure in ("accuracy", "balanced_accuracy", "macro_f1", "top5", "log_loss", "brier"):
            assert own[figure]["low"] <= own[figure]["value"] <= own[figure]["high"]


def test_predictions_have_one_row_per_validation_and_test_image(done, base):
    schema = pq.read_schema(done.report / "predictions.parquet")
    image, own = ["image_id", "domain", "split", "label"], ("{}_predicted", "{}_label_probability", "{}")
    assert schema.names == [*image, *(name.format(model) for model in MODELS for name in own)]
    types = [pa.string(), pa.float32(), pa.list_(pa.float32())]
    assert schema.types == [pa.string()] * 4 + types * 2
    frame = pd.read_parquet(done.report / "predictions.parquet").set_index("image_id").sort_index()
    manifest = small_dataset(base).manifest.set_index("image_id").sort_index()
    expected = manifest[manifest["split"].isin(["val", "test"])]
    assert len(frame) == 48 and frame[["domain", "split", "label"]].equals(expected[["domain", "split", "label"]])


def test_probabilities_sum_to_one_and_agree_with_the_metrics(done, predictions):
    validation, test = (predictions[predictions["split"] == split] for split in ("val", "test"))
    for model in MODELS:
        probabilities = np.stack(predictions[model].dropna())
        assert probabilities.shape == (48 if model == done.found.choice.winner else 24, 3)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    for rows, model, scores in [
        (test, done.found.choice.winner, done.found.test),
        *((validation, model, done.found.validation[model]) for model in MODELS),
    ]:
        right = [CLASSES[row.argmax()] == label for row, label in zip(rows[model], rows["label"], strict=True)]
        assert np.mean(right) == pytest.approx(scores["accuracy"]["value"], abs=1e-6)


def test_the_heads_probabilities_are_its_logits_at_the_temperature_fitted_on_validation(done, predictions, base):
    small, fitted = small_dataset(base), head.load(small_head(base))
    rows = small.split("val").sort_values(["shard", "offset"])
    logits = np.concatenate([fitted.logits(x) for x, _ in reader.Features(small_features(base), rows)])
    stored = np.stack(predictions.set_index("image_id").loc[rows["image_id"], "head"])
    # log p = logit / T + a constant of the image
    slopes = [np.polyfit(given, np.log(p), 1)[0] for given, p in zip(logits, stored, strict=True)]
    np.testing.assert_allclose(slopes, np.median(slopes), rtol=1e-2)
    if done.found.choice.winner == "head":
        temperature = json.loads((done.model / "model.json").read_text())["temperature"]
        assert np.median(slopes) == pytest.approx(1 / temperature, rel=1e-2)


def test_two_runs_write_the_same_bytes_except_in_the_two_files_that_show_seconds(inputs, done, tmp_path):
    again = run(inputs, tmp_path, PARAMS, seconds=2.0)
    for one, other in ((done.report, again.report), (done.model, again.model)):
        first, second = done.files(one), done.files(other)
        differ = {name for name in first if first[name] != second[name]}
        assert differ == TIMED & first.keys()


def test_no_other_file_contains_a_time_a_machine_name_or_a_path(done, base):
    for folder in (done.report, done.model):
        for name, content in done.files(folder).items():
            if name not in TIMED:
                for secret in (str(base), str(Path.home() / "x")[:-1], "on a machine"):
                    assert secret.encode() not in content, f"{name}: {secret}"
                if not name.endswith((".safetensors", ".parquet")):
                    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", content.decode())


def test_timings_come_from_the_caller(done):
    assert json.loads((done.report / "timings.json").read_text()) == timings()


@pytest.mark.parametrize(
    ("images", "groups", "all_groups", "repeats", "offered"),
    [
        (400, 400, 900, 0, False),
        (90, 90, 300, 0, True),
        (220, 12, 40, 0, True),
        (220, 12, 40, 5, False),
        (220, 1, 4, 0, False),  # too few for folds
    ],
)
def test_repeated_splits_are_offered_where_test_images_or_their_groups_are_few(
    images, groups, all_groups, repeats, offered
):
    scored = measured(0.9, images, groups=groups)
    of = np.arange(images) % groups
    rows = pd.DataFrame({"label": ["ants", "bees"] * (images // 2), "class_index": 0, "group_id": of})
    part = SimpleNamespace(figures={"head": scored}, scored=SimpleNamespace(rows=rows))
    manifest = pd.DataFrame({"group_id": np.arange(all_groups)})
    pair = SimpleNamespace(manifest=manifest, classes=["ants", "bees"])
    found = evaluate._warn_of_few(pair, "head", part, part, repeats)
    assert any("evaluate.repeats: 5" in warning for warning in found) == offered
    assert len(found) == {400: 0, 90: 2}.get(groups, 3)  # of validation, of test images, and of classes in few groups
