"""Champion versus challenger: predictions of both on the same test images, each computed once."""

import dataclasses
import json
import shutil

import pandas as pd
import pytest

from rootstock.config.params import Evaluate, Params
from rootstock.evaluation import challenge, evaluate
from rootstock.evaluation.evaluate import Inputs
from rootstock.training import head
from rootstock.training.course import Course, save_course
from tests.small_dataset import small_backbone, small_dataset, small_features, small_finetuned, small_head


@pytest.fixture(scope="module", params=["head", "finetuned"])
def evaluated(request, base, tmp_path_factory):
    """The dataset, and the folder of a model and its report: a head, or a fine-tuned network."""
    small, folder = small_dataset(base), tmp_path_factory.mktemp("challenge")
    fitted = head.load(small_head(base))
    if request.param == "head":
        save_course(None, Course(), folder / "finetuned")
    else:  # with another head, that loses
        shutil.copytree(small_finetuned(base), folder / "finetuned")
        fitted = dataclasses.replace(fitted, weight=0 * fitted.weight)
    head.save(fitted, folder / "head", {})
    folders = (small_backbone(base), small_features(base).parent, folder / "head", folder / "finetuned")
    inputs = Inputs(small.images, small.dataset, *folders)
    params = Params(evaluate=Evaluate(label_issues=0, learning_curve=False, explain=False))
    evaluate.evaluate(inputs, params, folder / "model", folder / "report", list)
    return small, folder


@pytest.fixture
def predict(evaluated, base):
    """Return a function that compares the model with itself, which as champion knows only some of its predictions."""
    small, folder = evaluated
    own = folder / "report" / "predictions.parquet"

    cached = small_features(base).parent

    def predicted(known=own, features=cached, champion=folder / "model") -> pd.DataFrame:
        return challenge.predict_both(
            champion, known, own, small.dataset, small.images, features, folder / "model"
        )  # fmt: skip

    return predicted


@pytest.fixture
def fewer(evaluated, tmp_path):
    """Predictions of an earlier evaluation, without those of 20 of 24 test images."""
    _, folder = evaluated
    table = pd.read_parquet(folder / "report" / "predictions.parquet")
    table[table["split"] == "test"].iloc[:4].to_parquet(tmp_path / "fewer.parquet")
    return tmp_path / "fewer.parquet"


def test_stored_predictions_are_reused_and_equal_new_ones(evaluated, predict, fewer, work, tmp_path):
    small, _ = evaluated
    reused = predict()
    assert work.images == (0, 0)
    pd.testing.assert_frame_equal(reused, predict(fewer))
    pd.testing.assert_frame_equal(reused, predict(fewer, tmp_path / "no features"))
    assert len(reused) == len(small.split("test"))
    assert reused["known"].all()
    assert (reused["champion"] == reused["challenger"]).all()


def test_images_with_cached_features_are_neither_decoded_nor_computed(evaluated, predict, fewer, work, base, tmp_path):
    small, folder = evaluated
    if (folder / "finetuned" / "model.safetensors").exists():  # its features are in no file
        predict(fewer)
        assert work.images == (20, 20)
        return
    predict(fewer)
    assert work.images == (0, 0)
    features = tmp_path / "features" / small_features(base).name
    shutil.copytree(small_features(base), features)
    gone = sorted(small.split("test")["shard"])[-1]
    (features / f"{gone}.parquet").unlink()
    predict(fewer, tmp_path / "features")
    stored = set(pd.read_parquet(fewer)["image_id"])
    test = small.split("test")
    expected = int(((test["shard"] == gone) & ~test["image_id"].isin(stored)).sum())
    assert work.images == (expected, expected) and expected


def test_a_champion_with_other_features_computes_its_own(evaluated, predict, fewer, work, tmp_path):
    _, folder = evaluated
    shutil.copytree(folder / "model", tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"features": described["features"] | {"dtype": "float16"}}))
    assert predict(fewer, champion=tmp_path / "model")["champion"].equals(predict()["champion"])
    assert work.images == (20, 20)


def test_classes_unknown_to_the_champion_are_marked(evaluated, predict, tmp_path):
    _, folder = evaluated
    shutil.copytree(folder / "model", tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"classes": ["checks", "rings", "zigzag"]}))
    table = predict(champion=tmp_path / "model")
    assert table.groupby("label")["known"].all().to_dict() == {"checks": True, "rings": True, "stripes": False}
