"""Champion versus challenger: what counts as better, as worse, and as undecided."""

import dataclasses
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
from rootstock.training import finetune, head
from tests.small_dataset import small_backbone, small_dataset, small_features, small_finetuned, small_head

counts = st.integers(0, 60)


def outcomes(domain: str, both: int, won: int, lost: int, neither: int = 0, *, known: bool = True) -> pd.DataFrame:
    """Test images of a domain, by who is correct: both, the challenger alone, the champion alone, neither."""
    outcome = [(True, True)] * both + [(False, True)] * won + [(True, False)] * lost + [(False, False)] * neither
    rows = pd.DataFrame(outcome, columns=["champion", "challenger"], dtype=bool)
    return rows.assign(domain=domain, label="x", known=known)


def decided(*tables: pd.DataFrame, new: tuple[str, ...] = (), **settings: float) -> Decision:
    return decide(pd.concat(tables, ignore_index=True), new, Retrain(**settings), resamples=500, seed=0)


def compared(table: pd.DataFrame) -> challenge.PairedComparison:
    return compare(OVERALL, OVERALL, table, resamples=500, seed=0)


@given(both=counts, won=counts, lost=counts, neither=counts)
def test_intervals_hold_their_values_and_swapping_the_models_negates_the_gain(both, won, lost, neither):
    if not both + won + lost + neither:
        return
    one = compared(outcomes("a", both, won, lost, neither))
    other = compared(outcomes("a", both, lost, won, neither))
    assert one.p == other.p
    assert one.gain["value"] == pytest.approx(-other.gain["value"])
    assert (one.champion, one.challenger) == (other.challenger, other.champion)
    for interval in (one.champion, one.challenger, one.gain):
        assert -1 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
        assert interval["low"] < interval["high"]


def test_mcnemars_test_is_the_exact_one_on_those_that_differ():
    assert compared(outcomes("a", 100, 5, 0)).p == pytest.approx(2 / 2**5)
    assert compared(outcomes("a", 3, 6, 0, 50)).p == pytest.approx(2 / 2**6)
    by_hand = 2 * sum(comb(65, k) for k in range(7)) / 2**65
    assert compared(outcomes("a", 10, 59, 6)).p == pytest.approx(by_hand)
    assert compared(outcomes("a", 10, 7, 7)).p == 1


def test_better_overall_is_promoted():
    decision = decided(outcomes("old", 80, 20, 2))
    assert decision.promote
    assert "98.0% test accuracy overall, champion 80.4% (102 images, p < 0.001)" in decision.reason


def test_better_on_the_new_domain_alone_is_promoted():
    decision = decided(outcomes("old", 900, 10, 12), outcomes("new", 2, 10, 0), new=("new",))
    assert decision.promote
    assert "100.0% test accuracy on new, champion 16.7% (12 images, p = 0.002)" in decision.reason


def test_better_on_an_older_domain_alone_is_not():
    assert not decided(outcomes("old", 80, 8, 0), outcomes("older", 900, 4, 10)).promote


def test_significantly_worse_on_an_older_domain_is_rejected_however_good_elsewhere():
    decision = decided(outcomes("old", 80, 0, 8), outcomes("new", 0, 100, 0), new=("new",))
    assert not decision.promote
    assert "significantly worse: 90.9% test accuracy on old, champion 100.0% (88 images, p = 0.008)" in decision.reason


def test_a_difference_that_may_be_chance_is_no_reason():
    decision = decided(outcomes("old", 100, 1, 3), outcomes("new", 5, 5, 0), new=("new",))
    assert not decision.promote
    assert "not significantly better" in decision.reason


def test_a_gain_below_min_gain_is_not_enough():
    assert decided(outcomes("old", 990, 10, 0)).promote
    decision = decided(outcomes("old", 990, 10, 0), min_gain=0.05)
    assert not decision.promote
    assert "retrain.min_gain (5.0%)" in decision.reason


@pytest.mark.parametrize(("right", "promoted"), [(9, True), (3, False)])
def test_classes_that_the_champion_does_not_know_count_where_they_were_learnt(right, promoted):
    decision = decided(outcomes("old", 50, 0, 0), outcomes("new", 0, right, 0, 10 - right, known=False), new=("new",))
    assert decision.promote == promoted
    [unknown] = [one for one in decision.comparisons if one.about == NEW_CLASSES]
    assert (unknown.images, unknown.champion, unknown.p) == (10, None, None)
    assert decision.comparisons[0].images == 50  # the champion is compared on the classes it knows


def test_with_new_classes_alone_there_is_still_a_decision():
    assert decided(outcomes("new", 0, 8, 0, 2, known=False), new=("new",)).promote


def test_comparisons_are_overall_then_by_domain_and_are_in_the_table_and_the_picture():
    decision = decided(outcomes("b|c", 50, 3, 1), outcomes("a", 20, 0, 0))
    assert [(one.about, one.what) for one in decision.comparisons] == [
        (OVERALL, "overall"), (DOMAIN, "a"), (DOMAIN, "b|c")
    ]  # fmt: skip
    assert [one["images"] for one in json.loads(decision.to_json())] == [74, 20, 54]
    assert "| b\\|c | 54 | 94.4% | 98.1% | +3.7 (" in challenge.table(decision.comparisons)
    assert challenge.draw(decision.comparisons).startswith(b"\x89PNG")


@pytest.fixture(scope="module", params=["head", "finetuned"])
def evaluated(request, base, tmp_path_factory):
    """The dataset, and the folder of a model and its report: a head, or a fine-tuned network."""
    small, folder = small_dataset(base), tmp_path_factory.mktemp("challenge")
    fitted = head.load(small_head(base))
    if request.param == "head":
        finetune.save(None, [], folder / "finetuned")
    else:  # with another head, that loses
        shutil.copytree(small_finetuned(base), folder / "finetuned")
        fitted = dataclasses.replace(fitted, weight=0 * fitted.weight)
    head.save(fitted, folder / "head", {})
    folders = (small_backbone(base), small_features(base).parent, folder / "head", folder / "finetuned")
    inputs, params = Inputs(small.images, small.dataset, *folders), Params(evaluate=Evaluate(resamples=100))
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


def test_what_a_features_file_has_is_neither_decoded_nor_computed(evaluated, predict, fewer, work, base, tmp_path):
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


def test_a_champion_of_other_features_computes_its_own(evaluated, predict, fewer, work, tmp_path):
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
