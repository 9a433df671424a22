"""The model card shows the figures that the report shows, rounded in the same way."""

import pytest

from rootstock.evaluation.model_card import card

INTERVAL = {"value": 0.81234, "low": 0.7, "high": 0.9}


def card_of(classes: str, mirror: bool = False, **scores: dict) -> str:
    backbone = {"name": "a_net", "parameters": 1, "origin": "torchvision", "licence": "MIT"}
    described = {"backbone": backbone, "classes": list(classes), "temperature": 1.0}
    described["features"] = {"mirror": mirror}
    test = {"top5": INTERVAL, **scores, "classes": dict.fromkeys(classes), "domains": {}}
    return card(described, "The head won.", test, {"splits": dict.fromkeys(("train", "val", "test"), 1)})


@pytest.mark.parametrize(("classes", "is_shown"), [("abcde", False), ("abcdef", True)])
def test_the_card_shows_the_top_5_from_six_classes_on(classes, is_shown):
    assert ("| Top 5 | 81.2% | 70.0 to 90.0% |" in card_of(classes)) == is_shown


def test_the_card_rounds_nothing_to_a_perfect_figure():
    assert "| ROC-AUC | 99.9% |  |" in card_of("ab", roc_auc={"value": 0.99995})


def test_the_card_shows_losses_without_per_cent():
    loss = {"value": 0.0567, "low": 0.031, "high": 0.112}
    assert "| Log loss | 0.057 | 0.031 to 0.112 |" in card_of("ab", log_loss=loss)


@pytest.mark.parametrize("mirror", [True, False])
def test_the_card_says_that_mirror_images_count_where_they_do(mirror):
    assert ("its mirror image" in card_of("ab", mirror)) == mirror
