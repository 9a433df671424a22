"""Promoted, rejected or undecided: what has to be shown, and the reason given where it cannot be."""

import json
import re

import numpy as np
import pytest

from rootstock.config.params import Retrain
from rootstock.evaluation import decision_report
from rootstock.evaluation.decision import Decision, decide, lacking_images
from rootstock.evaluation.intervals import SampleSize
from rootstock.evaluation.paired_comparison import BEFORE, DELIVERY, DOMAIN, NEW_CLASS, OVERALL, compare
from rootstock.model.history import PROMOTED, REJECTED, UNDECIDED
from tests.paired_outcomes import decided, outcomes, together


def test_better_overall_and_as_good_everywhere_is_promoted():
    found = decided(outcomes("old", 280, 20, 2))
    assert found.outcome == PROMOTED and found.promote
    assert "99.3% test accuracy overall, champion 93.4% (302 images, gain +6.0 points, " in found.reason
    assert "as good on what was there before (retrain.margin is 4 points)" in found.reason  # nothing is lost


def test_a_promotion_states_the_largest_possible_loss_by_the_interval_that_decides():
    old, new = outcomes("old", 390, 5, 8), outcomes("new", 0, 60, 0)
    found = decided(old, new, new=("new",))
    lost = -100 * compare(DOMAIN, "old", old).gain.bound(0.05, upper=False)
    assert found.outcome == PROMOTED and 0.8 < lost < 4
    assert f"before, at most {lost:.1f} points lost on old (retrain.margin is 4 points)" in found.reason


def test_better_on_the_new_domain_alone_is_promoted():
    found = decided(outcomes("old", 900, 10, 12), outcomes("new", 2, 10, 0), new=("new",))
    assert found.outcome == PROMOTED
    assert "100% test accuracy on new, champion 16.7% (12 images, gain +83.3 points" in found.reason


def test_better_on_an_older_domain_alone_is_not_promoted():
    assert decided(outcomes("old", 80, 8, 0), outcomes("older", 900, 4, 10)).outcome != PROMOTED


def test_gains_on_new_domains_are_tested_with_holms_correction():
    # Each p is 0.0327: significant alone, but not as the smaller of two.
    tables = [outcomes("old", 900, 0, 0), outcomes("new", 100, 12, 4, 0)]
    assert decided(*tables, new=("new",)).outcome != PROMOTED
    assert decided(outcomes("new", 1000, 12, 4, 0)).outcome == PROMOTED


def test_a_loss_beyond_the_margin_is_rejected_and_shown_beside_a_gain_elsewhere():
    found = decided(outcomes("old", 80, 0, 20), outcomes("new", 0, 100, 0), new=("new",))
    assert found.outcome == REJECTED and found.trade_off
    assert "A trade-off: the challenger is better: " in found.reason
    assert "but worse by more than allowed (retrain.margin is 4 points): 80.0% test accuracy on old" in found.reason
    without_gain = decided(outcomes("old", 80, 0, 20))
    assert without_gain.outcome == REJECTED and not without_gain.trade_off


def test_a_gain_on_paintings_with_a_possible_loss_on_photos_is_left_to_a_person():
    """31.6 points gained on 591 new images, 3.4 (0.0 to 6.6) lost on 351 older ones."""
    found = decided(outcomes("photo", 300, 10, 22, 19), outcomes("painting", 300, 200, 13, 78), new=("painting",))
    assert found.outcome == UNDECIDED and found.trade_off
    assert "but not shown to be as good: " in found.reason and "on photo, champion " in found.reason


def test_too_few_images_of_an_older_domain_are_undecided_and_the_reason_says_how_many_more_are_needed():
    found = decided(outcomes("old", 900, 5, 5), outcomes("photo", 39, 0, 1), outcomes("new", 0, 50, 0), new=("new",))
    assert found.outcome == UNDECIDED
    assert "97.5% test accuracy on photo, champion 100% (40 images" in found.reason
    more = int(found.reason.partition("about ")[2].split()[0].replace(",", ""))
    enough = round((more + 40) / 40)
    tables = [outcomes("old", 900, 5, 5), outcomes("photo", 39 * enough, 0, enough), outcomes("new", 0, 50, 0)]
    assert decided(*tables, new=("new",)).outcome == PROMOTED


def test_an_older_domain_without_test_images_is_not_taken_to_be_as_good():
    images = together(outcomes("old", 900, 5, 5), outcomes("new", 0, 50, 0))
    found = decide(images, ("new",), Retrain(), older_domains=("old", "rare"))
    assert found.outcome == UNDECIDED and found.trade_off
    assert "but not shown to be as good: there are no test images of rare, about 65 would show it (" in found.reason
    assert decide(images, ("new",), Retrain(), older_domains=("old",)).outcome == PROMOTED
    nothing = decide(images, ("new",), Retrain(margin=0.0), older_domains=("rare",))
    assert "there are no test images of rare (retrain.margin is 0 points)" in nothing.reason


def test_more_images_are_not_suggested_against_a_loss_as_large_as_the_margin():
    found = decided(outcomes("photo", 90, 0, 4), outcomes("new", 0, 50, 0), new=("new",))
    assert "more images will not show it if that stays as it is" in found.reason


def test_few_images_without_a_difference_are_undecided_and_many_are_rejected():
    few = decided(outcomes("old", 900, 5, 5), outcomes("new", 3, 0, 0), new=("new",))
    assert few.outcome == UNDECIDED and "Too few test images to tell whether the challenger is better: " in few.reason
    assert "overall" not in few.reason  # where no gain worth having is left
    many = decided(outcomes("old", 900, 5, 5), outcomes("new", 300, 3, 3), new=("new",))
    assert many.outcome == REJECTED and "is no better: " in many.reason


@pytest.mark.parametrize(("won", "lost", "neither", "outcome"), [(4, 0, 0, PROMOTED), (8, 3, 29, PROMOTED),
                                                                 (0, 0, 20, REJECTED)])  # fmt: skip
def test_the_estimate_of_images_needed_is_about_right(won, lost, neither, outcome):
    old, of_new = outcomes("old", 900, 0, 0), won + lost + neither
    found = decided(old, outcomes("new", 0, won, lost, neither), new=("new",))
    assert found.outcome == UNDECIDED
    more = int(re.search(r"about ([\d,]+) more test images of new would tell", found.reason)[1].replace(",", ""))

    def grown(images: float) -> str:
        return decided(old, outcomes("new", 0, *(round(images / of_new * n) for n in (won, lost, neither))),
                       new=("new",)).outcome  # fmt: skip

    assert grown(of_new + 1.15 * more) == outcome
    assert grown(of_new + 0.7 * more) == UNDECIDED


def test_the_reason_says_so_where_no_number_of_images_would_decide():
    found = decided(outcomes("old", 100, 5, 5), margin=0.0)
    assert found.outcome == UNDECIDED and "more images will not tell if that stays as it is" in found.reason


def test_a_gain_below_min_gain_is_not_enough():
    assert decided(outcomes("old", 990, 10, 0)).outcome == PROMOTED
    found = decided(outcomes("old", 990, 10, 0), min_gain=0.05)
    assert found.outcome == REJECTED and "by less than retrain.min_gain (5 points)" in found.reason


def test_a_gain_below_min_gain_is_no_reason_to_reject_what_another_place_may_still_show():
    old = outcomes("old", 990, 10, 0)
    few = outcomes("new", 3, 2, 0)
    found = decided(old, few, new=("new",), min_gain=0.05)
    assert found.outcome == UNDECIDED and "on new, champion 60.0% (5 images" in found.reason
    assert "overall" not in found.reason
    new_class = outcomes("new", 0, 3, 0, known=False, label="brick")
    found = decided(old, new_class, min_gain=0.05)
    assert found.outcome == UNDECIDED and "Too few test images of the new classes" in found.reason


def test_a_new_class_that_was_not_learnt_is_no_reason_to_reject_what_another_place_may_still_show():
    failed = outcomes("old", 0, 0, 0, 20, known=False, label="brick")
    assert decided(outcomes("old", 990, 5, 5), failed).outcome == REJECTED
    found = decided(outcomes("old", 180, 13, 6), failed)
    assert found.outcome == UNDECIDED and "test accuracy overall, champion " in found.reason
    found = decided(outcomes("old", 990, 5, 5), failed, outcomes("new", 3, 2, 0), new=("new",))
    assert found.outcome == UNDECIDED and "on new, champion 60.0% (5 images" in found.reason


def test_a_large_loss_on_a_new_domain_is_not_made_good_by_a_gain_elsewhere():
    found = decided(outcomes("old", 300, 100, 0), outcomes("new", 40, 0, 60), new=("new",))
    assert found.outcome == REJECTED and found.trade_off
    assert "worse by more than allowed (retrain.margin is 4 points): 40.0% test accuracy on new" in found.reason


def test_a_challenger_that_lost_a_class_is_left_to_a_person():
    images = outcomes("old", 280, 20, 2)
    assert decide(images, (), Retrain()).promote
    found = decide(images, (), Retrain(), lost_classes=["cats"])
    assert found.outcome == UNDECIDED and found.trade_off
    assert found.reason.endswith(". It no longer knows cats, whose images are gone from the dataset.")
    assert found.is_for_a_person and found.lost_classes == ("cats",)
    open_too = decide(outcomes("old", 60, 2, 0), (), Retrain(), lost_classes=["cats"])
    assert "Too few" in open_too.reason and open_too.reason.endswith(" are gone from the dataset.")
    many = decide(images, (), Retrain(), lost_classes=[f"class {n:02d}" for n in range(20)])
    assert "class 07 and 12 more, whose images are gone" in many.reason


@pytest.mark.parametrize(("margin", "said"), [(0.01, "retrain.margin is 1 point)"), (0.015, "is 1.5 points)")])
def test_a_margin_of_one_point_is_one_point(margin, said):
    assert said in decided(outcomes("old", 0, 300, 0), margin=margin).reason


@pytest.mark.parametrize(("right", "of", "outcome"), [(1, 1, UNDECIDED), (9, 10, PROMOTED), (6, 10, UNDECIDED),
                                                      (1, 20, REJECTED)])  # fmt: skip
def test_a_new_class_counts_where_the_lower_bound_of_its_accuracy_is_high_enough(right, of, outcome):
    new_class = outcomes("new", 0, right, 0, of - right, known=False, label="brick")
    found = decided(outcomes("old", 500, 0, 0), new_class, new=("new",))
    assert found.outcome == outcome
    [unknown] = [one for one in found.comparisons if one.about == NEW_CLASS]
    assert (unknown.what, unknown.images, unknown.champion, unknown.gain) == ("brick", of, None, None)
    assert found.comparisons[0].images == 500  # the champion is compared on the classes it knows


@pytest.mark.parametrize(("right", "of", "threshold"), [(4, 6, 0.5), (3, 8, 0.5), (9, 9, 0.8), (0, 3, 0.5)])
def test_the_reason_says_how_many_more_test_images_of_a_new_class_would_tell(right, of, threshold):
    def outcome(times: float) -> Decision:
        images = round(of * times)
        hits = round(right * images / of)
        new_class = outcomes("new", 0, hits, 0, images - hits, known=False, label="brick")
        return decided(outcomes("old", 500, 0, 0), new_class, new=("new",), new_class_accuracy=threshold)

    found = outcome(1)
    more = int(re.search(r"about ([\d,]+) more test images? of brick would tell\.$", found.reason)[1])
    assert outcome(1 + 1.15 * more / of).outcome == (PROMOTED if right / of > threshold else REJECTED)
    assert outcome(1 + 0.7 * more / of).outcome == UNDECIDED or more == 1


def test_a_new_class_in_too_few_groups_lacks_groups():
    new_class = outcomes("new", 0, 20, 0, known=False, label="brick", scene=10)
    found = decided(outcomes("old", 500, 0, 0), new_class, new=("new",))
    assert found.outcome == UNDECIDED and found.reason.endswith("; test images of more groups of brick would tell.")


def test_with_new_classes_alone_there_is_still_a_decision():
    assert decided(outcomes("new", 0, 9, 0, 1, known=False), new=("new",)).outcome == PROMOTED


def test_images_of_a_group_count_once():
    alone = decided(outcomes("old", 600, 60, 0))
    scenes = decided(outcomes("old", 600, 60, 0, scene=30))
    assert alone.outcome == PROMOTED and scenes.outcome == UNDECIDED
    assert "(660 images in 22 groups, gain " in scenes.reason


def test_balanced_accuracy_lets_a_rare_class_count_like_a_common_one():
    common, rare = outcomes("old", 500, 0, 10, label="common"), outcomes("old", 20, 20, 0, label="rare")
    table = together(common, rare)
    by_image = compare(OVERALL, OVERALL, table)
    balanced = compare(OVERALL, OVERALL, table, measure="balanced_accuracy")
    assert by_image.gain.value == pytest.approx(10 / 550)
    assert balanced.gain.value == pytest.approx((0.5 - 10 / 510) / 2)
    assert balanced.champion["value"] == pytest.approx((0.5 + 1) / 2)
    assert balanced.gain.p_better < 0.001


def test_test_images_of_the_delivery_are_shown_separately_as_nobody_has_reviewed_them():
    fresh = outcomes("old", 40, 5, 1, unseen=True)
    found = decided(outcomes("old", 400, 10, 2), fresh)
    last = found.comparisons[-1]
    assert (last.about, last.images) == (DELIVERY, 46)
    assert "never looked at" in decision_report.table(found.comparisons)


def test_a_small_delivery_of_a_known_domain_is_undecided_as_it_cannot_move_the_overall_accuracy():
    before = outcomes("old", 760, 4, 6, 30, delivered=False)
    few = outcomes("old", 14, 3, 0, delivered=True)
    found = decided(before, few)
    assert found.outcome == UNDECIDED
    assert "on the images delivered of older domains, champion 82.4% (17 images, gain +17.6 points" in found.reason
    assert [one.about for one in found.comparisons] == [OVERALL, DOMAIN, BEFORE]  # nowhere it counts to be better


def test_a_delivery_that_is_large_enough_and_brings_nothing_is_rejected():
    found = decided(outcomes("old", 760, 4, 6, 30, delivered=False), outcomes("old", 300, 2, 2, delivered=True))
    assert found.outcome == REJECTED and "is no better: " in found.reason


def test_a_delivery_without_a_test_image_is_undecided():
    found = decided(outcomes("old", 760, 4, 6, 30, delivered=False))
    assert found.outcome == UNDECIDED and found.reason.endswith("; none of them was delivered.")


@pytest.mark.parametrize(("images", "gain"), [(17, 0.2), (3, 0.3)])
@pytest.mark.parametrize("older", [400, 800])
def test_small_deliveries_that_help_are_hardly_ever_rejected(images, gain, older):
    rng, rejected = np.random.default_rng(images + older), 0
    for _ in range(200):
        change = rng.choice([-1, 0, 1], older, p=[0.02, 0.96, 0.02])
        helped = rng.choice([0, 1], images, p=[1 - gain, gain])
        old = outcomes("old", *((change == value).sum() for value in (0, 1, -1)), delivered=False)
        new = outcomes("old", (helped == 0).sum(), (helped == 1).sum(), 0, delivered=True)
        rejected += decided(old, new).outcome == REJECTED
    assert rejected <= 0.05 * 200


@pytest.mark.parametrize("margin", [0.02, 0.04, 0.1])
def test_the_minimum_of_missing_images_is_what_equal_predictions_would_need(margin):
    def shown(images: int) -> bool:
        return decided(outcomes("new", 0, 50, 0), outcomes("old", images, 0, 0), new=("new",), margin=margin).promote

    lacking = lacking_images(10, SampleSize(10, 10, False), margin)
    assert shown(10 + lacking) and not shown(10 + lacking - 1)
    assert lacking_images(10 + lacking, SampleSize(10 + lacking, 10 + lacking, False), margin) == 0
    assert lacking_images(0, SampleSize(0, 0, False), margin) == 10 + lacking


def test_a_margin_of_zero_waits_for_no_images_as_only_a_gain_can_show_it():
    assert lacking_images(10, SampleSize(10, 10, False), 0.0) == 0
    better = outcomes("old", 100, 60, 0)
    assert decided(better, margin=0.0).promote


def test_a_delivery_to_a_known_domain_does_not_outvote_what_was_there():
    """With shifted labels it is learnt well, in spite of what the domain's own images say."""
    there = outcomes("field", 10, 0, 23, 3, delivered=False)
    found = decided(there, outcomes("field", 2, 41, 0, 17))
    assert found.outcome == REJECTED and found.trade_off
    assert "27.8% test accuracy on field before this delivery, champion 91.7% (36 images" in found.reason
    assert [one.about for one in found.comparisons] == [OVERALL, DOMAIN, BEFORE]
    [before] = [one for one in found.comparisons if one.about == BEFORE]
    assert before.title == "field before this delivery" and json.loads(found.to_json())[-1]["what"] == "field"


def test_a_loss_on_what_was_there_that_may_be_chance_is_left_to_a_person():
    found = decided(outcomes("field", 34, 0, 2, 0, delivered=False), outcomes("field", 140, 50, 4, 6))
    assert found.outcome == UNDECIDED and found.trade_off
    assert "test accuracy on field before this delivery, champion 100% (36 images" in found.reason
    assert ", which those delivered must not outvote (retrain.margin is 4 points)." in found.reason


def test_a_promotion_states_what_the_images_from_before_leave_possible():
    few = decided(outcomes("field", 3, 0, 0, delivered=False), outcomes("field", 300, 100, 0))
    assert few.promote and "before this delivery" not in few.reason  # 3 images leave nearly all possible
    there, more = outcomes("field", 97, 0, 1, delivered=False), outcomes("field", 100, 100, 0)
    found = decided(there, more)
    lost = -100 * compare(BEFORE, "field", there).gain.bound(0.05, upper=False)
    assert found.promote and 4 < lost < 5
    assert f"at most {lost:.1f} points lost on field before this delivery (retrain.margin" in found.reason


@pytest.mark.parametrize(("won", "lost", "outcome"), [(6, 6, UNDECIDED), (1, 1, PROMOTED), (12, 3, PROMOTED)])
def test_images_from_before_have_to_exclude_a_loss_of_10_points_where_they_are_enough_for_it(won, lost, outcome):
    there = outcomes("field", 40 - won - lost, won, lost, delivered=False)
    assert decided(there, outcomes("field", 100, 100, 0)).outcome == outcome


def test_images_delivered_to_a_known_domain_help_to_show_that_nothing_is_lost():
    there, more = outcomes("field", 34, 1, 1, 0, delivered=False), outcomes("field", 140, 50, 4, 6)
    assert decided(there, more).outcome == PROMOTED
    assert decided(outcomes("field", 9, 0, 0, 1, delivered=False), more).outcome == PROMOTED


def test_where_the_delivered_images_leave_no_doubt_they_are_not_said_to_be_too_few():
    found = decided(outcomes("field", 860, 14, 18, 8, delivered=False), outcomes("field", 2, 12, 0, 6))
    assert found.outcome == UNDECIDED
    assert "test accuracy overall" in found.reason and "the images delivered" not in found.reason
