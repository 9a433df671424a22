"""What to do next follows from validation, training and labels, each advice with its reason."""

import numpy as np
import pandas as pd
import pytest

from rootstock.evaluation.advice import MOST, Advice, Grounds, give
from rootstock.evaluation.learning_curve import LearningCurve
from rootstock.evaluation.metrics import score
from rootstock.training.checkpoints import Epoch

CLASSES = ["ants", "bees", "wasps"]


def figures(recall: tuple[float, ...] = (1, 1, 1), domains: tuple[float, float] = (1, 1), images: int = 200) -> dict:
    """Figures where a share of each class is right, and of each of two domains."""
    labels = np.repeat(np.arange(3), images)
    place = np.arange(images) / images
    right = np.concatenate([place < share for share in recall])
    domain = np.tile(np.arange(images) % 2, 3)
    right &= np.tile(place, 3) < np.asarray(domains)[domain]
    answers = np.where(right, labels, (labels + 1) % 3)
    return score(labels, 0.9 * np.eye(3)[answers] + 0.1 / 3, np.where(domain, "studio", "field"), CLASSES)


def grounds(**changes) -> Grounds:
    counts = {name: {"train": 500, "val": 200, "test": 200} for name in CLASSES}
    given = {"winner": "head", "validation": {"head": figures()}, "by_class": counts, "test_images": 600}
    return Grounds(**(given | changes))


def only(given: Grounds) -> Advice:
    [advice] = give(given)
    return advice


def curve(now: float, then: float) -> LearningCurve:
    return LearningCurve((100, 1000), ((0.6,) * 5, (now,) * 5), (then,) * 5)


def epochs(*accuracy: float, unfrozen: str = "last_block") -> list[Epoch]:
    return [Epoch(0, unfrozen, number, 0.5, 1 - value, value) for number, value in enumerate(accuracy)]


def test_nothing_is_advised_where_nothing_stands_out():
    assert give(grounds()) == []


def test_labels_that_are_probably_wrong_are_to_be_checked_and_the_most_frequent_confusion_is_named():
    rows = [("ants", "bees")] * 3 + [("wasps", "ants")]
    advice = only(grounds(suspects=pd.DataFrame(rows, columns=["label", "suggested"])))
    assert advice.what == "Check 4 labels" and advice.link == "labels"
    assert "most often ants that is rather bees (3)" in advice.why


def test_images_are_wanted_of_classes_that_validation_shows_to_be_missed():
    weak = grounds(validation={"head": figures((1, 0.8, 1))}, winner="head", history=epochs(0.5), curve=None)
    advice = only(weak)
    assert advice.what == "Add images of bees" and "bees (80.0%)" in advice.why
    chance = grounds(validation={"head": figures((1, 0.9, 1), images=12)}, history=epochs(0.5))
    assert give(chance) == []  # one of twelve may be chance


def test_images_are_wanted_of_classes_that_training_has_few_of():
    counts = {"ants": {"train": 500}, "bees": {"train": 9}, "wasps": {"train": 500}}
    assert only(grounds(by_class=counts)).why == "They have fewer than 30 training images: bees (9)."


@pytest.mark.parametrize(("then", "said"), [(0.95, ["Collect more images like these"]), (0.901, [])])
def test_more_images_are_wanted_where_the_learning_curve_says_that_they_help(then, said):
    assert [advice.what for advice in give(grounds(curve=curve(0.9, then)))] == said


def test_test_images_are_wanted_where_there_are_few_and_of_other_groups_where_these_are():
    few = only(grounds(test_images=90, few_groups=9))  # which have no intervals that could be wide
    assert (few.what, few.why) == ("Add test images", "There are only 90 in 9 groups: too few groups for intervals.")
    advice = only(grounds(test_images=220, few_groups=12))
    assert advice.what == "Add test images of other groups" and "220 images in 12 groups, too few" in advice.why


def test_images_are_wanted_of_the_domain_with_the_lowest_accuracy():
    weak = grounds(validation={"head": figures(domains=(1, 0.8))}, history=epochs(0.5))
    assert only(weak).what == "Add images of the domain studio"


def test_later_layers_are_to_be_fine_tuned_where_nothing_was():
    assert only(grounds(validation={"head": figures((0.95, 0.95, 0.95))})).what.startswith("Fine-tune the later layers")


def test_a_deeper_stage_is_worth_trying_where_the_deepest_was_the_best():
    both = {"head": figures((0.9, 0.9, 0.9)), "finetuned": figures((0.97, 0.97, 0.97))}
    tuned = {"winner": "finetuned", "validation": both}
    advice = only(grounds(**tuned, history=epochs(0.9, 0.97)))
    assert advice.what.startswith("Unfreeze more than last_block") and "97.0%" in advice.why and "90.0%" in advice.why
    assert give(grounds(**tuned, history=epochs(0.9, 0.97, unfrozen="all"))) == []
    worse = [*epochs(0.9, 0.97), Epoch(1, "last_half", 0, 0.5, 0.2, 0.95)]
    assert give(grounds(**tuned, history=worse)) == []


def compared(**best) -> pd.DataFrame:
    columns = {"reason": "", "trained": "frozen", "accuracy": 0.97, "accuracy_low": 0.95, "layer": "high"}
    columns |= {"image_size": 224} | best
    return pd.DataFrame([{"backbone": "vgg16", **columns}])


def test_another_backbone_is_named_where_a_comparison_found_a_better_one_and_asked_for_where_images_do_not_help():
    given = {"validation": {"head": figures((0.9, 0.9, 0.9))}, "history": epochs(0.5), "backbone": "resnet18"}
    advice = only(grounds(**given, compared=compared()))
    assert advice.what == "Take vgg16 as the backbone" and "resnet18 90.0%" in advice.why
    assert "its frozen features (layer high, 224 px) reaches 97.0%" in advice.why
    for worse in ({"accuracy_low": 0.89}, {"trained": "scratch"}, {"reason": "failed"}, {"backbone": "resnet18"}):
        assert give(grounds(**given, compared=compared(**worse))) == []
    flat = only(grounds(**given, curve=curve(0.9, 0.901)))
    assert flat.what == "Compare other backbones (python -m flows.compare small)"


def test_the_test_images_change_no_advice_but_that_there_are_too_few_of_them():
    assert only(grounds(test_images=40)).why.startswith("There are only 40")


def test_there_are_never_more_than_a_few_pieces_of_advice():
    many = grounds(
        validation={"head": figures((1, 0.6, 0.9), domains=(1, 0.7))},
        suspects=pd.DataFrame([("ants", "bees")], columns=["label", "suggested"]),
        curve=curve(0.8, 0.9),
        test_images=20,
    )
    assert len(give(many)) == MOST
