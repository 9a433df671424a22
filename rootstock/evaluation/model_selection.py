"""The choice between the head and the fine-tuned network, by validation figures alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rootstock.training import calibration

Logits = NDArray[np.float32]
MODELS = ("head", "finetuned")
SAME_LOSS = 5e-4  # closer log losses are a tie: the engines that compute head and network differ by as much
NAMES = {"head": "the head on frozen features", "finetuned": "the fine-tuned network"}


@dataclass(frozen=True)
class Choice:
    """The better model on validation, each model's figures, and the reason in a sentence."""

    winner: str
    figures: dict[str, dict[str, float]]
    why: str


def choose(logits: dict[str, Logits], labels: NDArray[np.int64]) -> Choice:
    """Choose by validation accuracy, then log loss; the simpler model, the head, wins a tie, or if it is alone."""
    figures = {}
    for name in logits:
        probabilities = calibration.softmax(logits[name])
        of_label = probabilities[np.arange(len(labels)), labels]
        accuracy = float((logits[name].argmax(1) == labels).mean())
        figures[name] = {"accuracy": accuracy, "log_loss": float(-np.log(np.maximum(of_label, 1e-12)).mean())}
    if len(figures) == 1:
        measured = f"{figures['head']['accuracy']:.1%} validation accuracy ({len(labels)} images)"
        return Choice("head", figures, f"Nothing was fine-tuned, so the model is {NAMES['head']}: {measured}.")
    first, second = (figures[name] for name in MODELS)
    gain, loss_drop = second["accuracy"] - first["accuracy"], first["log_loss"] - second["log_loss"]
    is_tie = gain == 0 and abs(loss_drop) < SAME_LOSS
    winner, loser = ("finetuned", "head") if not is_tie and (gain, loss_drop) > (0, 0) else ("head", "finetuned")
    better, worse = figures[winner], figures[loser]
    reason = f"validation accuracy {better['accuracy']:.1%} vs {worse['accuracy']:.1%} ({len(labels)} images)"
    if is_tie:
        reason += f", equal log loss ({better['log_loss']:.3f}); the simpler model wins a tie"
    elif gain == 0:
        reason += f", log loss {better['log_loss']:.3f} vs {worse['log_loss']:.3f}"
    return Choice(winner, figures, f"{NAMES[winner][0].upper()}{NAMES[winner][1:]} won: {reason}.")
