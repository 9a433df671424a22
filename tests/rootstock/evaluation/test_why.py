"""The report explains its worst mistakes and most confident hits, and shows what the layers of the backbone see."""

import io

import numpy as np
import pytest
from PIL import Image

from rootstock.evaluation import why
from rootstock.evaluation.model_pair import ModelPair
from rootstock.evaluation.scored import Scored
from rootstock.training import calibration
from tests.evaluations import PARAMS


@pytest.fixture(scope="module")
def pair(inputs) -> ModelPair:
    return ModelPair(inputs, PARAMS)


@pytest.fixture(scope="module")
def test_images(pair) -> Scored:
    return Scored.of(
        pair.rows("test"), {"head": calibration.probabilities(pair.scores("test", "head")["head"].logits, 1.0)}
    )


def sides(picture: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "WEBP"
        return image.size


def test_mistakes_have_the_evidence_for_both_classes_and_hits_for_one(pair, test_images):
    found = why.explain(pair, test_images, "head")
    own, labels = test_images.predictions["head"], test_images.labels
    wrong = own.predicted != labels
    assert len(found.mistakes) == min(wrong.sum(), why.MISTAKES) > 0
    assert [one.confidence for one in found.mistakes] == sorted(
        (one.confidence for one in found.mistakes), reverse=True
    )
    assert all(one.actual != one.predicted and sides(one.image) == (why.SIDE, why.SIDE) for one in found.mistakes)
    for one in found.mistakes:
        assert [name for name, _ in one.evidence] == [one.predicted, one.actual]
    assert all(any(one.evidence[place][1] for one in found.mistakes) for place in (0, 1))
    assert all([name for name, _ in one.evidence] == [one.predicted] == [one.actual] for one in found.hits)
    assert len({one.actual for one in found.hits}) == len(found.hits) == len(np.unique(labels[~wrong]))
    for hit in found.hits:
        of_class = own.confidence[~wrong & (labels == pair.classes.index(hit.actual))]
        assert hit.confidence == pytest.approx(of_class.max())


def test_the_number_of_explanations_does_not_grow_with_the_number_of_classes(pair, test_images, monkeypatch):
    monkeypatch.setattr(why, "MISTAKES", 1)
    monkeypatch.setattr(why, "HITS", 2)
    found = why.explain(pair, test_images, "head")
    assert (len(found.mistakes), len(found.hits)) == (1, 2)


def test_filters_and_feature_maps_of_the_backbone_are_drawn(pair, test_images):
    found = why.explain(pair, test_images, "head")
    assert found.layer == "stage3" and found.filter_shape == (24, 3) and sides(found.filters)[0] > 16 * why.FILTER_PX
    assert [(level.name, level.layer, level.channels, level.side) for level in found.levels] == [
        ("low", "maxpool", 24, 8),
        ("mid", "stage3", 96, 2),
    ]  # the high level has a single position


def test_a_test_split_without_any_mistake_has_hits_alone(pair, test_images):
    sure = 0.9 * np.eye(3)[test_images.labels].astype(np.float32) + 0.03
    perfect = Scored.of(test_images.rows, {"head": sure})
    found = why.explain(pair, perfect, "head")
    assert found.mistakes == [] and len(found.hits) == 3
