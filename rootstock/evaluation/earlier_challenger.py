"""The challenger before, whose delivery still waits: whether what has arrived since makes the model worse.

An undecided delivery adds up with the next. The champion may be so bad on a new domain that a challenger beats it in
spite of wrong labels in the newer part; the challenger that was trained without that part tells.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from rootstock.config import params
from rootstock.dataset import image_ids
from rootstock.evaluation import decision, figures, paired_comparison
from rootstock.evaluation.decision import Decision
from rootstock.evaluation.paired_comparison import DOMAIN, OVERALL, PairedComparison, PairedOutcomes
from rootstock.model.history import PROMOTED, UNDECIDED

# What is kept of a challenger: whether it was right, image by image, and which of them its delivery brought
COLUMNS = ["image_id", "label", "challenger", "delivered"]


def find_losses(
    earlier: pd.DataFrame, now: pd.DataFrame, settings: params.Retrain, seed: int = 0
) -> list[PairedComparison]:
    """Find where a challenger is significantly worse than the one before, on the test images that both answered.

    Args:
        earlier: the COLUMNS of the challenger before.
        now: those of this one, with `domain` and `group`.
        settings: the section `retrain` of params.yaml.
        seed: of random sign flips.

    Returns:
        Comparisons with this challenger as `champion` and the one before as `challenger`, on all of these images and
        on each domain. None if most of the images that the earlier delivery brought are gone: it no longer waits.
    """
    waits = image_ids.is_in(earlier.loc[earlier["delivered"], "image_id"], now["image_id"])
    if not len(waits) or waits.mean() < 0.5:
        return []
    both = now.drop_duplicates("image_id").merge(earlier, on=["image_id", "label"], suffixes=("", "_before"))
    if not (n := len(both)):
        return []
    outcomes = PairedOutcomes(
        domains=both["domain"].to_numpy(object), labels=both["label"].to_numpy(object),
        groups=both["group"].to_numpy(np.int64), known=np.ones(n, bool), delivered=np.zeros(n, bool),
        unseen=np.zeros(n, bool), champion=both["challenger"].to_numpy(bool),
        challenger=both["challenger_before"].to_numpy(bool),
    )  # fmt: skip
    parts = [(OVERALL, OVERALL, outcomes)]
    parts += [(DOMAIN, name, outcomes.where(outcomes.domains == name)) for name in sorted(set(outcomes.domains))]
    compared = [paired_comparison.compare(*part, measure=settings.measure, seed=seed) for part in parts]
    return decision.significantly_better(compared, settings.alpha)


def hold_back(found: Decision, losses: Sequence[PairedComparison]) -> Decision:
    """Return the decision; undecided in place of promoted if the challenger before was better."""
    if found.outcome != PROMOTED or not losses:
        return found
    worst = max(losses, key=lambda one: one.gain.value if one.gain else 0.0)
    before, now = (figures.percent(own["value"]) if own else "" for own in (worst.challenger, worst.champion))
    reason = (
        f"What has arrived since the last, undecided retraining makes the model worse: {now} {worst.measure} "
        f"{worst.where}, {before} without it, on the same {figures.counted(worst.images, 'image')}. Look at these "
        "files and their labels, and take the wrong ones out of the inbox."
    )
    reason = f"{reason} Otherwise: {found.reason}"
    return replace(found, outcome=UNDECIDED, reason=reason, trade_off=True, held_back=True)
