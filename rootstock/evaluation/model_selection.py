"""The choice between the head and the fine-tuned network, by validation figures alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rootstock.evaluation import figures

MODELS = ("head", "finetuned")
SAME_LOSS = 5e-4  # closer log losses are a tie: the engines that compute head and network differ by as much
NAMES = {"head": "the head on frozen features", "finetuned": "the fine-tuned network"}


@dataclass(frozen=True)
class Choice:
    """The better model on validation, and the reason in a sentence."""

    winner: str
    why: str


def choose(validation: Mapping[str, Mapping[str, Any]], measure: str = "accuracy") -> Choice:
    """Choose by validation accuracy, then log loss; the simpler model, the head, wins a tie, or if it is alone.

    Args:
        validation: figures of each model after calibration, as returned by `metrics.score`.
        measure: accuracy or balanced_accuracy.
    """
    count = figures.counted(next(iter(validation.values()))["images"], "image")
    called = measure.replace("_", " ")
    found = {name: (scores[measure]["value"], scores["log_loss"]["value"]) for name, scores in validation.items()}
    if len(found) == 1:
        measured = f"{figures.percent(found['head'][0])} validation {called} ({count})"
        return Choice("head", f"Nothing was fine-tuned, so the model is {NAMES['head']}: {measured}.")
    (head, head_loss), (network, network_loss) = (found[name] for name in MODELS)
    gain, loss_drop = network - head, head_loss - network_loss
    is_tie = gain == 0 and abs(loss_drop) < SAME_LOSS
    winner, loser = ("finetuned", "head") if not is_tie and (gain, loss_drop) > (0, 0) else ("head", "finetuned")
    shares = [figures.percent(found[name][0]) for name in (winner, loser)]
    reason = f"validation {called} {' vs '.join(shares)} ({count})"
    if is_tie:
        reason += f", equal log loss ({found[winner][1]:.3f}); the simpler model wins a tie"
    elif gain == 0:
        reason += f", log loss {found[winner][1]:.3f} vs {found[loser][1]:.3f}"
    return Choice(winner, f"{NAMES[winner][0].upper()}{NAMES[winner][1:]} won: {reason}.")


def summarize(validation: Mapping[str, Mapping[str, Any]], winner: str) -> dict[str, Any]:
    """Return the DVC metric: the winner and its figures on validation; all other figures are in validation.json.

    They are few and their names short, so that `dvc exp show` has them all on the first screen.
    """
    own = validation[winner]
    second = ("balanced", "balanced_accuracy") if "balanced_accuracy" in own else ("map", "average_precision")
    return {
        "winner": winner,
        "accuracy": own["accuracy"]["value"],
        **{end: share for end, share in own["accuracy"].items() if end != "value"},
        **{name: own[metric]["value"] for name, metric in [second] if metric in own},
        "log_loss": own["log_loss"]["value"],
    }
