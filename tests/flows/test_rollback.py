"""`python -m flows.rollback`: an earlier champion comes back with its data."""

import sys

import pytest

from tests.flows.test_repro_and_flow import UP_TO_DATE
from tests.retraining import champions, model_of, retrain

pytestmark = pytest.mark.usefixtures("one_server")


@pytest.mark.slow
def test_a_rollback_restores_an_earlier_champion_with_its_data_and_prints_what_changed(in_use, after):
    after.set(retrain={"min_gain": 0.5})
    refused = after.run(sys.executable, "-m", "flows.rollback", check=False)
    assert refused.returncode == 1
    assert "rollback: params.yaml was edited and not committed" in refused.stderr
    after.run("git", "checkout", "-q", "params.yaml")
    said = after.run(sys.executable, "-m", "flows.rollback").stdout
    assert "Champion v1 is restored.\nimages: 105 -> 45\ndomains: garden 45, shed 60 -> garden 45" in said
    assert model_of(after) == model_of(in_use)
    assert after.status() == UP_TO_DATE
    unknown = after.run(sys.executable, "-m", "flows.rollback", "--version", "7", check=False)
    assert "There is no champion v7 in data/history.parquet; there is v1, v2." in unknown.stderr
    assert [row.decision for row in champions(after)] == ["first", "promoted", "rolled back"]


@pytest.mark.slow  # half a minute
def test_a_rolled_back_delivery_is_not_tried_again_and_the_later_champion_can_be_restored(after):
    after.run(sys.executable, "-m", "flows.rollback")
    assert retrain(after).startswith("Nothing new")
    assert "Champion v2 is restored." in after.run(sys.executable, "-m", "flows.rollback", "--version", "2").stdout
    assert [row.decision for row in champions(after)] == ["first", "promoted", "rolled back", "rolled back"]
    assert "Champion v2 is restored." in after.run(sys.executable, "-m", "flows.rollback", "--version", "2").stdout
    assert len(champions(after)) == 4  # it was champion already
