"""Answers of a champion and a challenger on test images, and the decision about them."""

from dataclasses import replace

import numpy as np

from rootstock.config.params import Retrain
from rootstock.evaluation.decision import Decision, decide
from rootstock.evaluation.paired_comparison import PairedOutcomes


def outcomes(
    domain: str, both: int, won: int, lost: int, neither: int = 0, *, label: str = "x", known: bool = True,
    delivered: bool = True, unseen: bool = False, scene: int = 1,
) -> PairedOutcomes:  # fmt: skip
    """Test images of a domain, by who is correct: both, the challenger alone, the champion alone, neither."""
    counts = [both, won, lost, neither]
    n = sum(counts)
    return PairedOutcomes(
        domains=np.full(n, domain, object), labels=np.full(n, label, object), groups=np.arange(n) // scene,
        known=np.full(n, known), delivered=np.full(n, delivered),
        unseen=np.full(n, unseen),
        champion=np.repeat([True, False, True, False], counts),
        challenger=np.repeat([True, True, False, False], counts),
    )  # fmt: skip


def together(*parts: PairedOutcomes) -> PairedOutcomes:
    """Put images together; groups of different parts are different."""
    apart = [replace(part, groups=part.groups + 100_000 * number) for number, part in enumerate(parts)]
    return PairedOutcomes(**{name: np.concatenate([vars(part)[name] for part in apart]) for name in vars(parts[0])})


def decided(*parts: PairedOutcomes, new: tuple[str, ...] = (), **settings: object) -> Decision:
    return decide(together(*parts), new, Retrain(**settings))
