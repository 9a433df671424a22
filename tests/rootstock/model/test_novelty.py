"""None of these: images unlike all training images are called unknown, and 5 % of the validation images are."""

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

import rootstock
from rootstock.model import novelty
from rootstock.system.errors import DamagedError
from tests.simulated_features import simulated
from tests.small_dataset import small_dataset


def test_features_unlike_those_of_any_class_are_more_novel():
    train, other = simulated(300, apart=4), simulated(200, apart=4, seed=1)
    fitted = novelty.fit(train, 3)
    away = np.float32(other.x + np.random.default_rng(0).normal(0, 20, other.x.shape))
    assert fitted.score(other.x).mean() < 0.3 < 0.5 < fitted.score(away).mean()
    assert ((fitted.score(away) >= 0) & (fitted.score(away) <= 2)).all()


def test_the_score_is_the_distance_to_the_nearest_class_mean_by_cosine():
    train, other = simulated(300), simulated(50, seed=1)
    x = train.x.astype(np.float64)
    deviation = np.maximum(x.std(0), 0.3 * np.sqrt(x.var(0).mean()))

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    standardised = unit((x - x.mean(0)) / deviation)
    means = unit(np.stack([standardised[train.labels == c].mean(0) for c in range(3)]))
    expected = 1 - (unit((other.x - x.mean(0)) / deviation) @ means.T).max(1)
    np.testing.assert_allclose(novelty.fit(train, 3).score(other.x), expected, atol=1e-5)


def test_the_threshold_refuses_5_percent_of_the_validation_images():
    scores = np.random.default_rng(0).random(1000).astype(np.float32)
    fitted = novelty.fit(simulated(60), 3).with_threshold(scores)
    assert (scores > fitted.threshold).mean() == pytest.approx(novelty.REFUSED, abs=0.002)


def test_it_is_read_as_it_was_written(tmp_path):
    fitted = novelty.fit(simulated(60), 3).with_threshold(np.float32([0.1, 0.2]))
    novelty.save(fitted, tmp_path / novelty.FILE)
    read = novelty.load(tmp_path / novelty.FILE, fitted.threshold)
    assert np.array_equal(read.score(simulated(9).x), fitted.score(simulated(9).x))
    (tmp_path / novelty.FILE).write_bytes(b"not safetensors")
    with pytest.raises(DamagedError, match=novelty.FILE):
        novelty.load(tmp_path / novelty.FILE, 0.0)


def test_a_model_calls_images_unknown_by_the_threshold_that_evaluation_stored(evaluated, base, tmp_path):
    _, folder = evaluated
    described = json.loads((folder / "model" / "model.json").read_text())
    model = rootstock.load_model(folder / "model")
    assert model.novelty.threshold == described["novelty"]["threshold"]
    rows = small_dataset(base).manifest
    predictions = model.predict([base / "small" / row.source / row.path for row in rows.itertuples()])
    for one in predictions:
        assert one.unknown == (one.novelty > model.novelty.threshold)
    refused = np.array([one.unknown for one in predictions])[(rows["split"] == "val").to_numpy()]
    assert refused.sum() == math.ceil(0.05 * len(refused) - 0.05)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8))
    noise.save(tmp_path / "noise.png")
    [strange] = model.predict(tmp_path / "noise.png")
    assert strange.novelty > np.median([one.novelty for one in predictions])
    assert strange.label in model.classes


def test_the_share_of_unknown_test_images_is_reported(evaluated):
    _, folder = evaluated
    unknown = json.loads((folder / "report" / "test.json").read_text())["unknown"]
    assert 0 <= unknown["low"] <= unknown["value"] <= unknown["high"] <= 1
    assert "of the test images would be called unknown" in (folder / "report" / "report.html").read_text()


def test_a_model_of_an_earlier_version_calls_nothing_unknown_and_a_damaged_one_is_refused(evaluated, base, tmp_path):
    _, folder = evaluated
    shutil.copytree(folder / "model", tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    described = json.loads(path.read_text())
    with (tmp_path / "model" / novelty.FILE).open("ab") as file:
        file.write(b"more")
    with pytest.raises(DamagedError, match=novelty.FILE):
        rootstock.load_model(tmp_path / "model")
    del described["novelty"]
    path.write_text(json.dumps(described))
    [prediction] = rootstock.load_model(tmp_path / "model").predict(next((base / "small").rglob("*.png")))
    assert prediction.novelty is None and not prediction.unknown
