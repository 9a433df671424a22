"""Ask a person whether to promote a challenger about which the test images leave a doubt.

The run pauses: the UI shows it as Paused, with the question as a form. A run without a server that stays asks on its
terminal. Nobody's answer within a day leaves the decision as it is. A run that nobody can see leaves the question open:
the next one that somebody can answer asks again.
"""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.settings import PREFECT_API_URL
from pydantic import Field

from rootstock.model import history
from rootstock.system import escape
from tasks.bridge import champion

if TYPE_CHECKING:  # imports scikit-learn
    from rootstock.evaluation.decision import Decision

ANSWER_WITHIN_S = 24 * 3600
BY_SETTING = "Promoted nevertheless: retrain.undecided is promote."
BY_PERSON = {True: "A person decided to promote it.", False: "A person decided to keep the champion."}


class Promotion(RunInput):
    """The form."""

    promote: bool = Field(default=False, description="Make the challenger champion.")


def ask(decision: "Decision") -> "Decision":
    """Return the decision as a person has made it: unchanged if nobody answers in the UI, else undecided."""
    answer = _in_ui(decision) if _has_ui() else _on_terminal(decision)
    if answer is None:
        return decision if _has_ui() else replace(decision, outcome=history.UNDECIDED, unanswered=True)
    outcome = history.PROMOTED if answer else history.REJECTED
    return replace(decision, outcome=outcome, reason=f"{decision.reason} {BY_PERSON[answer]}")


def can_ask() -> bool:
    """Whether there is a UI, or a terminal, to ask on."""
    return _has_ui() or _has_terminal()


def _has_ui() -> bool:
    return bool(PREFECT_API_URL.value())


def _has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()  # a process may have no standard input


def _in_ui(decision: "Decision") -> bool | None:
    question = f"{escape.markdown(decision.reason)}\n\n{champion.accuracy_table(decision)}"
    form: Any = Promotion.with_initial_data(description=question)
    get_run_logger().warning("%s The run is paused: answer in the UI, by Resume", decision.reason)
    try:
        given: Promotion | None = pause_flow_run(wait_for_input=form, timeout=ANSWER_WITHIN_S)
    except FlowPauseTimeout:
        get_run_logger().warning("Nobody answered within a day")
        return None
    return given.promote if given else None


def _on_terminal(decision: "Decision") -> bool | None:
    if not _has_terminal():
        get_run_logger().warning("retrain.undecided is ask, but there is neither a UI nor a terminal to ask on")
        return None
    print(f"\n{decision.reason}\n\n{escape.plain(champion.accuracy_table(decision))}\n")
    answer = ""
    try:
        while answer not in ("y", "n"):
            answer = input("Promote it? [y/n] ").strip().lower()[:1]
    except EOFError:  # Ctrl-D, or the terminal is gone
        print()
        get_run_logger().warning("Nobody answered: the input ended")
        return None
    return answer == "y"
