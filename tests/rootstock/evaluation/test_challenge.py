"""Champion against challenger: what counts as better, what as worse, and what nobody can tell."""

import json
import shutil
from math import comb

import pandas as pd
import pytest
from hypothesis import given, strategies as st

from rootstock.config.params import Evaluate, Params, Retrain
from rootstock.evaluation import challenge, evaluate
from rootstock.evaluation.challenge import DOMAIN, NEW_CLASSES, OVERALL, Decision, compare, decide
from rootstock.evaluation.evaluate import Inputs
from tests.small_dataset import small_backbone, small_dataset, small_features, small_finetuned, small_head

counts = st.integers(0, 60)


def answers(domain: str, both: int, won: int, lost: int, neither: int = 0, *, known: bool = True) -> pd.DataFrame:
    """Test images of a domain, by who is right: both, the challenger alone, the champion alone, neither."""
    outcome = [(True, True)] * both + [(False, True)] * won + [(True, False)] * lost + [(False, False)] * neither
    rows = pd.DataFrame(outcome, columns=["champion", "challenger"], dtype=bool)
    return rows.assign(domain=domain, label="x", known=known)


def decided(*tables: pd.DataFrame, new: tuple[str, ...] = (), **settings: float) -> Decision:
    return decide(pd.concat(tables, ignore_index=True), new, Retrain(**settings), resamples=500, seed=0)


def line(table: pd.DataFrame) -> challenge.PairedComparison:
    return compare(OVERALL, OVERALL, table, resamples=500, seed=0)


@given(both=counts, won=counts, lost=counts, neither=counts)
def test_intervals_hold_their_values_and_changing_places_turns_the_gain_about(both, won, lost, neither):
    if not both + won + lost + neither:
        return
    one = line(answers("a", both, won, lost, neither))
    other = line(answers("a", both, lost, won, neither))
    assert one.p == other.p
    assert one.gain["value"] == pytest.approx(-other.gain["value"])
    assert (one.champion, one.challenger) == (other.challenger, other.champion)
    for interval in (one.champion, one.challenger, one.gain):
        assert -1 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
        assert interval["low"] < interval["high"]


def test_mcnemars_test_is_the_exact_one_on_those_that_differ():
    assert line(answers("a", 100, 5, 0)).p == pytest.approx(2 / 2**5)
    assert line(answers("a", 3, 6, 0, 50)).p == pytest.approx(2 / 2**6)
    by_hand = 2 * sum(comb(65, k) for k in range(7)) / 2**65
    assert line(answers("a", 10, 59, 6)).p == pytest.approx(by_hand)
    assert line(answers("a", 10, 7, 7)).p == 1


def test_better_overall_is_promoted():
    decision = decided(answers("old", 80, 20, 2))
    assert decision.promote
    assert "overall 98.0% instead of 80.4% of 102 test images right (p < 0.001)" in decision.reason


def test_better_on_the_new_domain_alone_is_promoted():
    decision = decided(answers("old", 900, 10, 12), answers("new", 2, 10, 0), new=("new",))
    assert decision.promote
    assert "on new 100.0% instead of 16.7% of 12 test images right (p = 0.002)" in decision.reason


def test_better_on_an_older_domain_alone_is_not():
    assert not decided(answers("old", 80, 8, 0), answers("older", 900, 4, 10)).promote


def test_significantly_worse_on_an_older_domain_is_rejected_however_good_elsewhere():
    decision = decided(answers("old", 80, 0, 8), answers("new", 0, 100, 0), new=("new",))
    assert not decision.promote
    assert "significantly worse: on old 90.9% instead of 100.0% of 88 test images right (p = 0.008)" in decision.reason


def test_a_difference_that_may_be_chance_is_no_reason():
    decision = decided(answers("old", 100, 1, 3), answers("new", 5, 5, 0), new=("new",))
    assert not decision.promote
    assert "not significantly better" in decision.reason


def test_a_gain_below_what_is_asked_for_is_not_enough():
    assert decided(answers("old", 990, 10, 0)).promote
    decision = decided(answers("old", 990, 10, 0), min_gain=0.05)
    assert not decision.promote
    assert "retrain.min_gain (5.0%)" in decision.reason


@pytest.mark.parametrize(("right", "promoted"), [(9, True), (3, False)])
def test_classes_that_the_champion_does_not_know_count_where_they_were_learnt(right, promoted):
    decision = decided(answers("old", 50, 0, 0), answers("new", 0, right, 0, 10 - right, known=False), new=("new",))
    assert decision.promote == promoted
    [unknown] = [line for line in decision.lines if line.about == NEW_CLASSES]
    assert (unknown.images, unknown.champion, unknown.p) == (10, None, None)
    assert decision.lines[0].images == 50  # the champion is compared on the classes it knows


def test_with_new_classes_alone_there_is_still_a_decision():
    assert decided(answers("new", 0, 8, 0, 2, known=False), new=("new",)).promote


def test_lines_are_overall_then_the_domains_and_are_spelt_out_in_the_table_and_the_picture():
    decision = decided(answers("b|c", 50, 3, 1), answers("a", 20, 0, 0))
    assert [(line.about, line.what) for line in decision.lines] == [
        (OVERALL, "overall"), (DOMAIN, "a"), (DOMAIN, "b|c")
    ]  # fmt: skip
    assert [one["images"] for one in json.loads(decision.to_json())] == [74, 20, 54]
    assert "| b\\|c | 54 | 94.4% | 98.1% | +3.7 (" in challenge.table(decision.lines)
    assert challenge.draw(decision.lines).startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Two evaluations of the same models, the second with more test images."""
    base = tmp_path_factory.getbasetemp()
    small = small_dataset(base)
    folders = (small_backbone(base), small_features(base).parent, small_head(base), small_finetuned(base))
    folder = tmp_path_factory.mktemp("challenge")
    evaluate.evaluate(
        Inputs(small.images, small.dataset, *folders), Params(evaluate=Evaluate(resamples=100)), folder / "model",
        folder / "report", list,
    )  # fmt: skip
    return small, folder


def test_what_was_answered_before_is_recalled_and_equals_what_would_be_answered_now(evaluated, tmp_path):
    small, folder = evaluated
    said = folder / "report" / "predictions.parquet"
    recalled = challenge.answers(folder / "model", said, said, small.dataset, small.images, folder / "model")
    fewer = tmp_path / "fewer.parquet"
    pd.read_parquet(said).iloc[:3].to_parquet(fewer)
    asked = challenge.answers(folder / "model", fewer, said, small.dataset, small.images, folder / "model")
    pd.testing.assert_frame_equal(recalled, asked)
    assert len(recalled) == len(small.split("test"))
    assert recalled["known"].all()
    assert (recalled["champion"] == recalled["challenger"]).all()


def test_a_champion_of_fewer_classes_is_known_not_to_know_the_others(evaluated, tmp_path):
    small, folder = evaluated
    shutil.copytree(folder / "model", tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"classes": ["checks", "rings", "zigzag"]}))
    said = folder / "report" / "predictions.parquet"
    table = challenge.answers(tmp_path / "model", said, said, small.dataset, small.images, folder / "model")
    assert table.groupby("label")["known"].all().to_dict() == {"checks": True, "rings": True, "stripes": False}
