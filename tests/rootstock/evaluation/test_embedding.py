"""The map of the features: some images of every class and domain, placed by t-SNE, with their thumbnails."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rootstock.evaluation import embedding
from rootstock.evaluation.model_pair import ModelPair
from rootstock.evaluation.scored import Scored
from tests.evaluations import PARAMS


@pytest.fixture(scope="module")
def pair(inputs) -> ModelPair:
    return ModelPair(inputs, PARAMS)


def drawn(pair: ModelPair, left_out: int = 6) -> embedding.Embedding:
    splits = [pair.rows(split) for split in ("val", "test")]
    right = [Scored.of(rows, {"head": np.eye(len(pair.classes))[rows["class_index"]]}) for rows in splits]
    kept = [np.arange(len(own.rows)) >= left_out for own in right]
    features = [
        pair.scores(own.rows["split"].iloc[0], "head", keep=keep)["head"].features
        for own, keep in zip(right, kept, strict=True)
    ]
    return embedding.draw(pair, right, kept, np.concatenate(features), "head", 0)


def test_features_are_kept_of_the_images_that_were_asked_for(pair):
    keep = np.arange(len(pair.rows("test"))) % 3 == 0
    for model in pair.names:
        some, every = (pair.scores("test", model, keep=mask)[model] for mask in (keep, np.ones(len(keep), bool)))
        np.testing.assert_allclose(some.features, every.features[keep], atol=1e-5)
        np.testing.assert_array_equal(some.logits, every.logits)
        assert len(pair.scores("test", model)[model].features) == 0


def test_images_are_drawn_evenly_from_classes_and_domains_and_the_same_in_every_run():
    rows = pd.DataFrame({"class_index": [0] * 90 + [1] * 10, "domain": ["field"] * 50 + ["studio"] * 50})
    chosen = embedding.choose(rows, 12, seed=0)
    assert rows[chosen].groupby(["class_index", "domain"]).size().tolist() == [4, 4, 4]
    assert (embedding.choose(rows, 12, seed=0) == chosen).all()
    assert embedding.choose(rows, 1000, seed=0).all() and not embedding.choose(rows, 0, seed=0).any()


def test_images_of_a_kind_lie_together_and_every_run_gives_the_same_map():
    draw = np.random.default_rng(0)
    kind = np.arange(60) % 3
    features = (draw.normal(size=(60, 20)) + 8 * draw.normal(size=(3, 20))[kind]).astype(np.float32)
    placed = embedding.tsne(features, 0)
    assert placed.shape == (60, 2) and placed.min() >= 0 and placed.max() <= 1
    away = np.linalg.norm(placed[:, None] - placed[None], axis=2) + np.eye(60)
    assert (kind[away.argmin(1)] == kind).mean() > 0.95
    assert (embedding.tsne(features, 0) == placed).all()


def test_each_point_has_its_image_in_the_sprite(pair):
    found = drawn(pair)
    assert len(found.points) == 36 and found.of == 48
    with Image.open(io.BytesIO(found.sprite)) as sprite:
        assert sprite.size == (found.columns * found.side, -(-36 // found.columns) * found.side)
    assert {point["split"] for point in found.points} == {"val", "test"}
    for point in found.points:
        assert point["label"] == point["predicted"] == found.classes[point["look"]]
        assert point["domain"] == found.domains[point["place"]]


def test_of_many_classes_only_some_have_a_look_of_their_own(pair, monkeypatch):
    many = [f"species {number}" for number in range(24)]
    features = {split: pair.scores(split, "head", keep=np.ones(24, bool)) for split in ("val", "test")}
    monkeypatch.setattr(ModelPair, "scores", lambda self, split, *_, keep: features[split])
    monkeypatch.setattr(pair, "classes", many)
    monkeypatch.setattr(ModelPair, "rows", lambda self, split, of=ModelPair.rows: _relabelled(of(self, split), many))
    found = drawn(pair, left_out=0)
    assert len(found.classes) == embedding.NAMED
    looks = [point["look"] for point in found.points]
    assert -1 in looks and max(looks) == embedding.NAMED - 1


def _relabelled(rows: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    numbers = np.arange(len(rows)) % len(classes)
    return rows.assign(class_index=numbers, label=np.asarray(classes)[numbers])


def test_there_is_no_map_of_few_images_or_of_features_that_do_not_vary(pair):
    one = Scored.of(pair.rows("test"), {"head": np.eye(3)[pair.rows("test")["class_index"]]})
    for count, features in ((5, np.random.default_rng(0).normal(size=(5, 8))), (20, np.ones((20, 8)))):
        kept = np.arange(len(one.rows)) < count
        assert embedding.draw(pair, [one], [kept], features.astype(np.float32), "head", 0) is None
