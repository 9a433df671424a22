"""What a person, or nobody, answers on the terminal of a retraining."""

import logging
import sys
from dataclasses import replace

import pytest

from flows.retrain import what_next
from rootstock.config.params import Retrain
from rootstock.evaluation.decision import Decision
from rootstock.model.history import PROMOTED, REJECTED, UNDECIDED
from tasks.bridge import question

OPEN = Decision(UNDECIDED, "Too few test images to tell.")


@pytest.fixture
def answered(monkeypatch):
    """Ask on a terminal, with the lines that are typed; then the input ends."""

    def ask(*lines: str) -> Decision:
        left = iter(lines)

        def line(_: str) -> str:
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", line)
        monkeypatch.setattr(question, "get_run_logger", lambda: logging.getLogger("retrain"))
        return question.ask(OPEN)

    return ask


@pytest.mark.parametrize(("lines", "outcome", "said"), [(["", "Yes"], PROMOTED, "promote it"),
                                                        (["what?", "n"], REJECTED, "keep the champion")])  # fmt: skip
def test_a_person_is_asked_until_the_answer_is_yes_or_no(answered, lines, outcome, said):
    found = answered(*lines)
    assert found.outcome == outcome
    assert found.reason == f"Too few test images to tell. A person decided to {said}."


def test_the_end_of_the_input_leaves_the_decision_as_it_is(answered, caplog):
    assert answered("") == replace(OPEN, unanswered=True)
    assert "Nobody answered: the input ended" in caplog.text


def test_without_a_terminal_or_a_ui_the_question_stays_open(monkeypatch, caplog):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    monkeypatch.setattr(question, "get_run_logger", lambda: logging.getLogger("retrain"))
    assert not question.can_ask()
    assert question.ask(OPEN) == replace(OPEN, unanswered=True)
    assert "neither a UI nor a terminal" in caplog.text
    trade_off = Decision(REJECTED, "A trade-off.", trade_off=True)
    assert question.ask(trade_off) == replace(trade_off, outcome=UNDECIDED, unanswered=True)  # it waits in the inbox
    assert what_next(replace(OPEN, unanswered=True), Retrain(undecided="ask")).endswith(
        "Nobody has answered: run it again on a terminal (python -m flows.retrain), or from the UI."
    )


def test_a_process_without_standard_input_cannot_ask(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(question, "get_run_logger", lambda: logging.getLogger("retrain"))
    assert not question.can_ask()
    assert question.ask(OPEN) == replace(OPEN, unanswered=True)
