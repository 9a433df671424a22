"""The model card shows the figures that the report shows, rounded in the same way."""

import pytest
from huggingface_hub import ModelCard

from rootstock.evaluation.model_card import card

INTERVAL = {"value": 0.81234, "low": 0.7, "high": 0.9}


def card_of(classes: str, mirror: bool = False, licence: str = "MIT", **scores: dict) -> str:
    backbone = {"name": "a_net", "parameters": 1, "origin": "torchvision", "licence": licence}
    described = {"backbone": backbone, "classes": list(classes), "temperature": 1.0}
    described["features"] = {"mirror": mirror}
    test = {"top5": INTERVAL, "domains": {}, **scores, "classes": dict.fromkeys(classes)}
    return card(described, "The head won.", test, {"splits": dict.fromkeys(("train", "val", "test"), 1)})


@pytest.mark.parametrize(("classes", "is_shown"), [("abcde", False), ("abcdef", True)])
def test_the_card_shows_the_top_5_from_six_classes_on(classes, is_shown):
    assert ("| Top 5 | 81.2% | 70.0 to 90.0% |" in card_of(classes)) == is_shown


def test_the_card_rounds_nothing_to_a_perfect_figure():
    assert "| ROC-AUC | 99.9% |  |" in card_of("ab", roc_auc={"value": 0.99995})


def test_the_card_shows_losses_without_per_cent():
    loss = {"value": 0.0567, "low": 0.031, "high": 0.112}
    assert "| Log loss | 0.057 | 0.031 to 0.112 |" in card_of("ab", log_loss=loss)


@pytest.mark.parametrize(
    ("licence", "on_the_hub", "named"),
    [
        ("Apache-2.0", "apache-2.0", None),
        ("BSD-3-Clause (torchvision); trained on x", "other", "bsd-3-clause-torchvision-trained-on-x"),
    ],
)
def test_a_licence_that_the_hub_knows_is_spelt_as_it_spells_it(licence, on_the_hub, named):
    data = ModelCard(card_of("ab", licence=licence)).data
    assert (data.license, data.license_name) == (on_the_hub, named)


def test_names_of_domains_cannot_break_the_metadata():
    nasty = "a: [b\n---\n# c"
    card = ModelCard(card_of("ab", accuracy=INTERVAL, domains={nasty: {"images": 3, "accuracy": INTERVAL}}))
    assert card.data.eval_results[0].dataset_name == nasty and card.text.strip().startswith("# a_net: 2 classes")


@pytest.mark.parametrize("mirror", [True, False])
def test_the_card_says_that_mirror_images_count_where_they_do(mirror):
    assert ("its mirror image" in card_of("ab", mirror)) == mirror
