"""Evaluation: the choice is made on validation before the test split is read, and files are reproducible."""

import dataclasses
import html
import json
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from rootstock.backbones import backbones
from rootstock.config.params import Evaluate, Params
from rootstock.dataset import shards
from rootstock.evaluation import evaluate, measured_models, metrics, mistakes, model_pair
from rootstock.evaluation.mistakes import worst_mistakes
from rootstock.evaluation.model_pair import Inputs, ModelPair, Scored
from rootstock.evaluation.model_selection import MODELS, choose
from rootstock.features import extraction, feature_extractor, reader
from rootstock.system.errors import SourceError
from rootstock.system.files import sha256
from rootstock.training import calibration, epochs, finetune, head
from rootstock.training.head import Head
from tests.small_dataset import (
    CLASSES,
    classifier_from,
    draw,
    small_backbone,
    small_dataset,
    small_features,
    small_finetuned,
    small_head,
    take_in,
)

PARAMS = Params(evaluate=Evaluate(resamples=100, mistakes=5))
TIMED = {"timings.json", "report.html"}
FILES = {"metrics.json", "validation.json", "test.json", "predictions.parquet", "timings.json", "report.html"} | {
    f"plots/{name}.csv" for name in ("confusion", "history", "l2_path", "per_class", "reliability", "size")
}


def timings(seconds: float = 1.0) -> list[dict]:
    return [{"stage": "evaluate", "seconds": seconds, "images": 24, "note": "on a machine"}]


@pytest.fixture(scope="module")
def inputs(base) -> Inputs:
    small = small_dataset(base)
    return Inputs(
        small.images, small.dataset, small_backbone(base), small_features(base).parent, small_head(base),
        small_finetuned(base),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Done:
    """An evaluation and its outputs."""

    found: evaluate.Evaluation
    model: Path
    report: Path

    def files(self, folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(inputs: Inputs, folder: Path, params: Params = PARAMS, seconds: float = 1.0) -> Done:
    uses = folder / "measured.json"
    found = evaluate.evaluate(inputs, params, folder / "model", folder / "report", lambda: timings(seconds), uses)
    return Done(found, folder / "model", folder / "report")


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory) -> Done:
    """One evaluation, shared by the tests."""
    return run(inputs, tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def predictions(done) -> pd.DataFrame:
    return pd.read_parquet(done.report / "predictions.parquet")


# The choice


def logits(*right: float) -> np.ndarray:
    """Logits of images of class 0 of two, by the margin of the correct class."""
    return np.array([[margin, 0.0] for margin in right], np.float32)


def measured(labels: np.ndarray | None = None, **logits: np.ndarray) -> dict:
    """Figures of models with these logits; all images are of class 0 if no labels are given."""
    n, k = logits["head"].shape
    labels = np.zeros(n, np.int64) if labels is None else labels
    given = np.full(n, "field"), [f"class {index}" for index in range(k)]
    return {name: metrics.score(labels, calibration.softmax(own), *given, resamples=2) for name, own in logits.items()}


def test_the_model_with_the_higher_validation_accuracy_wins():
    choice = choose(measured(head=logits(1, 1, 1, -1), finetuned=logits(0.1, 0.1, 0.1, 0.1)))
    assert choice.winner == "finetuned"
    assert choice.why == "The fine-tuned network won: validation accuracy 100.0% vs 75.0% (4 images)."


def test_of_models_with_equal_accuracy_the_lower_log_loss_wins():
    choice = choose(measured(head=logits(1, 1, 1, -1), finetuned=logits(2, 2, 2, -1)))
    assert choice.winner == "finetuned"
    assert choice.why == (
        "The fine-tuned network won: validation accuracy 75.0% vs 75.0% (4 images), log loss 0.424 vs 0.563."
    )


def test_of_equal_models_the_head_which_is_simpler_wins():
    choice = choose(measured(head=logits(1, 2, 3, 4), finetuned=logits(1, 2, 3, 4)))
    assert choice.winner == "head" and choice.why.endswith(", equal log loss (0.127); the simpler model wins a tie.")


@given(st.floats(-1e-4, 1e-4))
def test_what_rounding_alone_tells_apart_is_a_tie(much):
    assert choose(measured(head=logits(1, 2, 3, -4), finetuned=logits(1, 2, 3, -4 + much))).winner == "head"


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(2, 5))
def test_no_other_model_is_better_on_validation_than_the_winner(seed, n, k):
    rng = np.random.default_rng(seed)
    drawn = {name: rng.normal(size=(n, k)).astype(np.float32) for name in MODELS}
    scores = measured(labels=rng.integers(0, k, n), **drawn)
    figures = {name: (own["accuracy"]["value"], -own["log_loss"]["value"]) for name, own in scores.items()}
    won, best = figures[choose(scores).winner], max(figures.values())
    assert won[0] == best[0] and won[1] == pytest.approx(best[1], abs=1e-3)


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

    for module in (mistakes, feature_extractor):
        monkeypatch.setattr(module, "Reader", NotingReader)
    monkeypatch.setattr(model_pair, "Features", NotingFeatures)
    monkeypatch.setattr(evaluate, "choose", noting)
    run(inputs, tmp_path)
    chosen = events.index("the choice")
    assert set(events[:chosen]) == {"val"} and events.count("val") == 2 * 24
    assert set(events[chosen + 1 :]) == {"test"} and events.count("test") >= 24


def test_the_winner_is_validations_even_where_the_test_split_would_choose_the_other(inputs, done, base, tmp_path):
    """Choice and model do not depend on the labels of the test images."""
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


# The files


def test_these_files_are_written_and_no_others(done):
    assert set(done.files(done.report)) == FILES
    assert set(done.files(done.model)) == {"model.safetensors", "model.json", "README.md"}


def test_metrics_json_is_what_runs_are_ranked_by_a_few_numbers_on_validation(done):
    found = json.loads((done.report / "metrics.json").read_text())
    assert list(found) == ["winner", "accuracy", "low", "high", "balanced", "log_loss", "head", "finetuned"]
    assert found["low"] < found["accuracy"] == found[found["winner"]] < found["high"]
    assert {name: found[name] for name in MODELS} == {
        name: own["accuracy"]["value"] for name, own in done.found.validation.items()
    }


def test_validation_json_has_all_figures_of_both_models_and_test_json_those_of_the_winner_alone(done):
    validation, test = (json.loads((done.report / f"{name}.json").read_text()) for name in ("validation", "test"))
    assert validation == done.found.validation and list(validation) == list(MODELS)
    assert test == {"winner": done.found.choice.winner, **done.found.test}
    for own in (*validation.values(), test):
        assert (own["images"], own["groups"]) == (24, 24)
        assert list(own["domains"]) == ["field", "studio"] and list(own["classes"]) == CLASSES
        for figure in ("accuracy", "balanced_accuracy", "macro_f1", "top5", "log_loss", "brier"):
            assert own[figure]["low"] <= own[figure]["value"] <= own[figure]["high"]


def test_every_other_model_measured_on_the_same_test_images_is_counted_and_said_from_the_second_on(
    inputs, base, tmp_path
):
    first, again = run(inputs, tmp_path), run(inputs, tmp_path)
    assert (first.found.models, again.found.models) == (1, 1)
    assert "model measured on these" not in (again.report / "report.html").read_text()
    finetune.save(None, [], tmp_path / "finetuned")
    weaker = dataclasses.replace(head.load(inputs.head), bias=head.load(inputs.head).bias + np.float32([1, 0, 0]))
    head.save(weaker, tmp_path / "head", {})
    other = run(dataclasses.replace(inputs, head=tmp_path / "head", finetuned=tmp_path / "finetuned"), tmp_path)
    assert other.found.models == 2
    assert "The 2nd model measured on these 24 test images" in (other.report / "report.html").read_text()
    assert measured_models.count(tmp_path / "measured.json", ["other", "images"], "model") == 1


def test_predictions_have_a_row_an_image_of_validation_and_test(done, base):
    schema = pq.read_schema(done.report / "predictions.parquet")
    assert schema.names == ["image_id", "domain", "split", "label", "head", "finetuned"]
    assert [schema.field(name).type for name in schema.names] == [pa.string()] * 4 + [pa.list_(pa.float32())] * 2
    frame = pd.read_parquet(done.report / "predictions.parquet").set_index("image_id").sort_index()
    manifest = small_dataset(base).manifest.set_index("image_id").sort_index()
    expected = manifest[manifest["split"].isin(["val", "test"])]
    assert len(frame) == 48 and frame[["domain", "split", "label"]].equals(expected[["domain", "split", "label"]])


def test_probabilities_sum_to_one_and_are_those_of_the_metrics(done, predictions):
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


def test_the_heads_probabilities_are_those_of_its_logits_at_a_temperature_that_validation_chose(
    done, predictions, base
):
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


def test_two_runs_give_the_same_bytes_but_in_the_two_files_that_show_seconds(inputs, done, tmp_path):
    again = run(inputs, tmp_path, seconds=2.0)
    for one, other in ((done.report, again.report), (done.model, again.model)):
        first, second = done.files(one), done.files(other)
        differ = {name for name in first if first[name] != second[name]}
        assert differ == TIMED & first.keys()


def test_no_file_but_those_two_names_a_time_a_machine_or_a_place(done, base):
    for folder in (done.report, done.model):
        for name, content in done.files(folder).items():
            if name not in TIMED:
                for secret in (str(base), str(Path.home() / "x")[:-1], "on a machine"):
                    assert secret.encode() not in content, f"{name}: {secret}"
                if not name.endswith((".safetensors", ".parquet")):
                    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", content.decode())


def test_timings_come_from_the_caller(done):
    assert json.loads((done.report / "timings.json").read_text()) == timings()


# Mistakes


def test_the_mistakes_shown_are_test_images_the_winner_got_wrong_worst_first(inputs, done, predictions, base):
    pair = ModelPair(inputs, PARAMS)
    rows = pair.rows("test")
    stored = predictions.set_index("image_id").loc[rows["image_id"]]
    winner = done.found.choice.winner
    scored = Scored(rows, {winner: np.stack(stored[winner])})
    manifest = small_dataset(base).manifest.set_index(["source", "path"])
    for model in (winner,):
        wrong = (scored.probabilities[model].argmax(1) != scored.labels).sum()
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
            assert mistake.thumbnail.startswith(b"\x89PNG")
    assert worst_mistakes(pair, scored, winner, 0) == []


def test_the_report_shows_the_worst_mistakes_and_is_one_file(done):
    page = (done.report / "report.html").read_text()
    assert page.count("data:image/png") >= 5 and "shufflenet_v2_x0_5 on field, studio" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page


def test_names_of_users_are_escaped_in_the_report_and_survive_elsewhere(base, tmp_path):
    odd = ['<b>"&', "<script>alert(1)", "Ünïcode"]
    for label, name in zip(CLASSES, odd, strict=True):
        (draw(tmp_path / "drawn", images=8) / label).rename(tmp_path / "drawn" / name)
        for other in CLASSES:
            shutil.rmtree(tmp_path / "drawn" / other, ignore_errors=True)
    domain = "<img src=x onerror=alert(1)>"
    small = take_in(tmp_path, (tmp_path / "drawn", domain))
    backbone = backbones.load(small_backbone(base))
    key = extraction.extract(backbone, PARAMS.extract, small.images, tmp_path / "features").key
    train, val = (reader.Features(tmp_path / "features" / key, small.split(split)) for split in ("train", "val"))
    head.save(head.fit_logistic_path(train, val, sorted(odd), (10.0,)), tmp_path / "head", {})
    network = classifier_from(tmp_path / "head", small_backbone(base))
    finetune.save(network, [], tmp_path / "finetuned")  # and no stage of fine-tuning
    folders = (tmp_path / name for name in ("features", "head", "finetuned"))
    done = run(Inputs(small.images, small.dataset, small_backbone(base), *folders), tmp_path)
    page = (done.report / "report.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "<b>&quot;" not in page and '<b>"&' not in page
    assert html.escape(domain) in page and html.escape(odd[1]) in page
    assert done.found.choice.winner == "head"  # the other is the same
    assert set(done.found.test["classes"]) == set(odd) and list(done.found.test["domains"]) == [domain]
    assert json.loads((done.model / "model.json").read_text(encoding="utf-8"))["classes"] == sorted(odd)


def test_a_head_of_another_data_set_is_not_scored(inputs, tmp_path):
    fitted = head.load(inputs.head)
    head.save(Head(fitted.weight[:2], fitted.bias[:2], CLASSES[:2], 1.0), tmp_path / "head", {})
    with pytest.raises(SourceError, match="was trained on other classes"):
        run(dataclasses.replace(inputs, head=tmp_path / "head"), tmp_path)
    assert not (tmp_path / "report").exists() and not (tmp_path / "model").exists()


# Nothing tuned, and limits


@pytest.fixture(scope="module")
def untuned(inputs, base, tmp_path_factory) -> Done:
    """An evaluation of what `finetune.stages: []` leaves."""
    folder = tmp_path_factory.mktemp("untuned")
    finetune.save(None, [], folder / "finetuned")
    return run(dataclasses.replace(inputs, finetuned=folder / "finetuned"), folder)


def test_where_nothing_was_tuned_the_model_is_the_head_and_all_texts_say_so(untuned):
    assert untuned.found.choice.winner == "head" and list(untuned.found.validation) == ["head"]
    card, page = (untuned.model / "README.md").read_text(), (untuned.report / "report.html").read_text()
    for text in (card, page):
        assert "Nothing was fine-tuned, so the model is the head on frozen features" in text
        assert not re.search("fine-tuned (network|model)", text, re.IGNORECASE)
    assert "Fine-tuned" not in page
    schema = pq.read_schema(untuned.report / "predictions.parquet")
    assert schema.names == ["image_id", "domain", "split", "label", "head"]


def test_where_nothing_was_tuned_no_image_is_decoded_or_goes_through_a_network(inputs, work, tmp_path):
    finetune.save(None, [], tmp_path / "finetuned")
    run(dataclasses.replace(inputs, finetuned=tmp_path / "finetuned"), tmp_path)
    assert work.images == (0, 0)


def test_only_the_images_that_a_fine_tuned_network_scores_are_decoded_and_once(inputs, work, tmp_path):
    run(inputs, tmp_path)
    assert work.images in ((48, 48), (24, 24))  # the test images only if the network won


def test_what_an_earlier_version_left_where_nothing_was_tuned_is_read(inputs, untuned, base, tmp_path):
    network = classifier_from(small_head(base), small_backbone(base))
    finetune.save(network, epochs.read_history(inputs.finetuned / finetune.HISTORY), tmp_path / "finetuned")
    epochs.write_history([], tmp_path / "finetuned" / finetune.HISTORY)  # and the weights of the head
    described = json.loads((tmp_path / "finetuned" / finetune.DESCRIPTION).read_text())
    described["digests"][finetune.HISTORY] = sha256(tmp_path / "finetuned" / finetune.HISTORY)
    (tmp_path / "finetuned" / finetune.DESCRIPTION).write_text(json.dumps(described))
    assert run(dataclasses.replace(inputs, finetuned=tmp_path / "finetuned"), tmp_path).found == untuned.found


def test_a_temperature_at_a_bound_and_too_few_test_images_are_in_the_log_and_in_the_report(
    done, inputs, tmp_path, caplog
):
    page = (done.report / "report.html").read_text()
    assert "There are only 24 test images" in page
    assert "Fewer than 30 test images: checks (8), rings (8), stripes (8)." in page
    assert "temperature" not in page.split("Warning:")[1].split("</p>")[0]
    assert calibration.at_bound(calibration.TEMPERATURES[0]) and calibration.at_bound(calibration.TEMPERATURES[1])
    assert not any(calibration.at_bound(temperature) for temperature in (0.06, 1.0, 19.0))
    run(inputs, tmp_path)
    assert "There are only 24 test images" in caplog.text


def test_repeated_splits_are_measured_as_asked_and_offered_where_test_images_are_few(done, inputs, tmp_path):
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


def test_what_head_and_fine_tuning_warn_of_is_in_the_report(inputs, base, tmp_path):
    warned = dataclasses.replace(head.load(small_head(base)), warnings=["The head has not converged."])
    head.save(warned, tmp_path / "head", {})
    done = run(dataclasses.replace(inputs, head=tmp_path / "head"), tmp_path)
    assert "The head has not converged." in (done.report / "report.html").read_text()
