"""The answers of a challenger whose delivery waits are kept until that delivery has been decided on."""

import pytest

from flows.retrain import ask_person
from rootstock.config.params import Retrain
from rootstock.evaluation.decision import Decision
from rootstock.evaluation.paired_comparison import PairedComparison
from rootstock.model import history
from rootstock.model.history import Row
from tasks.bridge import promotion
from tasks.bridge.champion import DeliverySummary
from tasks.bridge.verdict import ANSWERS
from tasks.bridge.workspace import WAITING

COMPARED = (PairedComparison("overall", "overall", 1, 1, {"value": 0.5}),)


@pytest.fixture
def restored(tmp_path, monkeypatch):
    """Restore the champion after a decision, in a folder where an earlier challenger's answers are kept."""
    monkeypatch.chdir(tmp_path)
    row = Row(history.FIRST, 1, "The first champion.", 9)
    monkeypatch.setattr(promotion.champion, "decisions_when_set_aside", lambda: [row])
    monkeypatch.setattr(promotion.champion, "row_of", lambda outcome, *_, **__: Row(outcome, 1, "", 9))
    monkeypatch.setattr(promotion, "_restore", lambda *_: "v1 stays champion.")
    ANSWERS.parent.mkdir(parents=True)
    WAITING.write_text("earlier")

    def restore(decision: Decision, answers: str = "") -> str | None:
        if answers:
            ANSWERS.write_text(answers)
        promotion.restore_champion(decision, DeliverySummary(), "run", "what was delivered")
        return WAITING.read_text() if WAITING.exists() else None

    return restore


def test_a_rejection_ends_the_wait_if_a_challenger_was_trained(restored):
    assert restored(Decision(history.REJECTED, "Worse.", COMPARED), "now") is None


def test_files_that_cannot_be_ingested_do_not_end_it(restored):
    assert restored(Decision(history.REJECTED, "The delivery cannot be ingested.")) == "earlier"


def test_an_undecided_challenger_takes_the_place_of_the_one_before(restored):
    assert restored(Decision(history.UNDECIDED, "Too few.")) == "earlier"
    ANSWERS.parent.mkdir(parents=True)
    assert restored(Decision(history.UNDECIDED, "Too few.", COMPARED), "now") == "now"


def test_a_challenger_that_was_held_back_does_not(restored):
    held_back = Decision(history.UNDECIDED, "What has arrived makes it worse.", COMPARED, held_back=True)
    assert restored(held_back, "now") == "earlier"
    assert ask_person(held_back, Retrain(undecided="promote")) == held_back  # which is for too few images
