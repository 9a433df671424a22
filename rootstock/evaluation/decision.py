"""Promoted, rejected or undecided: a challenger has to be better somewhere, and as good on all that was there.

"Not significantly worse" says nothing where images are few, so that the challenger has to be shown to be as good
(non-inferiority: Piaggio et al. 2012, JAMA 308:2594): on every older domain, and overall, the lower end of the
one-sided 95 % interval of the gain has to lie above minus `retrain.margin`. It is better where the one-sided exact test
says so, by Holm's correction (1979) over the places that are tested. Where images are too few to show either, the
answer is "undecided", with the number of images that are lacking. docs/retraining.md has the error rates.
"""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rootstock.config import params
from rootstock.evaluation import intervals
from rootstock.evaluation.intervals import CONFIDENCE, SampleSize
from rootstock.evaluation.paired import Gain
from rootstock.evaluation.paired_comparison import (
    BEFORE,
    DELIVERED,
    DELIVERY,
    DOMAIN,
    NEW_CLASS,
    OVERALL,
    UNSEEN,
    PairedComparison,
    PairedOutcomes,
    compare,
    compare_new_class,
)
from rootstock.model.history import PROMOTED, REJECTED, UNDECIDED
from rootstock.system.phrases import listed, percent

# Of images from before that those delivered may not outvote: confidence of their interval, by simulation
# (docs/retraining.md), and the loss that has to be excluded at the usual confidence where they are enough for that.
UPHELD, LARGE_LOSS = 0.8, 0.1
NAMED = 8  # comparisons that a reason names: a delivery may bring hundreds of classes


@dataclass(frozen=True)
class Decision:
    """What becomes of the challenger, the reason, and the comparisons behind it.

    `trade_off` is set where it is better somewhere but not shown to be as good elsewhere: a person may promote it.
    `held_back` is set where what has arrived last makes it worse: then only a person may. `unanswered` is set where a
    person was to decide, and nobody answered. A challenger that does not know `lost_classes` of the champion is a
    person's decision, too.
    """

    outcome: str
    reason: str
    comparisons: tuple[PairedComparison, ...] = ()
    trade_off: bool = False
    held_back: bool = False
    unanswered: bool = False
    lost_classes: tuple[str, ...] = ()

    @property
    def is_for_a_person(self) -> bool:
        """Whether only a person may promote the challenger."""
        return self.held_back or bool(self.lost_classes)

    @property
    def promote(self) -> bool:
        """Whether the challenger becomes champion."""
        return self.outcome == PROMOTED

    def to_json(self) -> str:
        """Return the comparisons as JSON."""
        return json.dumps([comparison.to_dict() for comparison in self.comparisons], ensure_ascii=False)


def decide(
    outcomes: PairedOutcomes, new_domains: Collection[str], settings: params.Retrain, *,
    older_domains: Collection[str] = (), lost_classes: Collection[str] = (), seed: int = 0,
) -> Decision:  # fmt: skip
    """Decide what becomes of the challenger; the champion is compared on the classes it knows.

    Args:
        outcomes: of all test images.
        new_domains: domains that the champion was not trained on.
        settings: the section `retrain` of params.yaml.
        older_domains: domains that the champion was trained on: one may be without test images.
        lost_classes: classes that the champion knows and the challenger does not.
        seed: of random sign flips, where there are too many to try all.
    """
    known, unknown = outcomes.where(outcomes.known), outcomes.where(~outcomes.known)
    parts = [(OVERALL, OVERALL, known)] if len(known) else []
    parts += [(DOMAIN, name, known.where(known.domains == name)) for name in sorted(set(known.domains))]
    grown = sorted(set(known.domains[known.delivered]) - set(new_domains))
    before = ((name, known.where((known.domains == name) & ~known.delivered)) for name in grown)
    parts += [(BEFORE, name, images) for name, images in before if len(images)]
    comparisons = [compare(*part, measure=settings.measure, seed=seed) for part in parts]
    comparisons += [
        compare_new_class(name, unknown.where(unknown.labels == name)) for name in sorted(set(unknown.labels))
    ]
    delivered = known.where(known.delivered & ~np.isin(known.domains, list(new_domains)))
    parts = [(DELIVERY, DELIVERED, delivered)] if len(delivered) else []
    of_delivery = [compare(*part, measure=settings.measure, seed=seed) for part in parts]
    untested = sorted(set(older_domains) - set(known.domains))
    verdict = _Verdict(comparisons, of_delivery, new_domains, untested, sorted(lost_classes), settings)
    found = verdict.decision(bool(outcomes.delivered.any()))
    unseen = known.where(known.unseen)
    if 0 < len(unseen) < len(known):
        comparisons.append(compare(DELIVERY, UNSEEN, unseen, measure=settings.measure, seed=seed))
    return replace(found, comparisons=tuple(comparisons), lost_classes=verdict.lost_classes)


def lacking_images(images: int, size: SampleSize, margin: float, won: float = 0.0) -> int:
    """Return how many test images are lacking at the least: without them, even the best answers show nothing.

    With no disagreement among n independent images, the score against a loss of m is the root of n m / (1 - m).

    Args:
        images: test images of the older domain; it may have none.
        size: their effective sample size.
        margin: `retrain.margin`.
        won: share of the images that the champion may have wrong: the challenger could be right on them.
    """
    if not margin:  # only a gain on the older domain would show it, and no number of images replaces that
        return 0
    tail = 1 - CONFIDENCE
    if not images:
        return math.ceil(size.quantile(tail) ** 2 * (1 - margin) / margin)
    growth = Gain(won, won, 0.0, size, p_better=1.0).growth_to_exceed(-margin, tail)
    return max(math.ceil(images * (growth - 1)), 0) if growth < math.inf else images


class _Verdict:
    """The rules, in the order in which they apply."""

    def __init__(
        self,
        comparisons: Sequence[PairedComparison],
        of_delivery: Sequence[PairedComparison],
        new_domains: Collection[str],
        untested: Sequence[str],
        lost_classes: Sequence[str],
        settings: params.Retrain,
    ) -> None:
        self.settings, self.of_delivery = settings, of_delivery
        self.untested, self.lost_classes = untested, tuple(lost_classes)
        overall = [one for one in comparisons if one.about == OVERALL]
        domains = [one for one in comparisons if one.about == DOMAIN]
        self.tested = [*overall, *(one for one in domains if one.what in new_domains)]
        self.older = [*overall, *(one for one in domains if one.what not in new_domains)]
        self.new_classes = [one for one in comparisons if one.about == NEW_CLASS]
        self.learnt = [one for one in self.new_classes if one.challenger.get("low", 0.0) > settings.new_class_accuracy]
        self.better = significantly_better(self.tested, settings.alpha)
        self.before = [one for one in comparisons if one.about == BEFORE]
        self.worse = [one for one in [*overall, *domains, *self.before] if _gain(one).is_below(-settings.margin)]
        self.open = [one for one in self.older if one not in self.worse and not _gain(one).exceeds(-settings.margin)]
        self.outvoted = [one for one in self.before if one not in self.worse and not _is_upheld(one, settings.margin)]

    def decision(self, delivered: bool) -> Decision:
        """Return the decision without its comparisons; `delivered` says whether any test image was delivered."""
        found = self._by_images(delivered)
        if not self.lost_classes:
            return found
        return replace(found, reason=f"{found.reason} It no longer knows {self._lost()}.")

    def _by_images(self, delivered: bool) -> Decision:
        margin = f"retrain.margin is {_points(self.settings.margin)}"
        enough = [one for one in self.better if _gain(one).value >= self.settings.min_gain]
        gains = enough + self.learnt
        if self.worse:
            loss = f"worse by more than allowed ({margin}): {_describe(self.worse)}"
            if not gains:
                return Decision(REJECTED, f"The challenger is {loss}.")
            return Decision(
                REJECTED, f"A trade-off: the challenger is better: {_describe(gains)}; but {loss}.", trade_off=True
            )
        as_good = not (self.open or self.outvoted or self.untested)
        if gains and as_good and not self.lost_classes:
            what = "is better" if enough else "has learnt new classes"
            return Decision(
                PROMOTED,
                f"The challenger {what}: {_describe(gains)}; as good on what was there before"
                f"{self._largest_loss()} ({margin}).",
            )
        if gains:
            but = "" if as_good else f"; but not shown to be as good: {self._lacks()} ({margin})"
            return Decision(UNDECIDED, f"The challenger is better: {_describe(gains)}{but}.", trade_off=True)
        return self._without_gain(delivered)

    def _without_gain(self, delivered: bool) -> Decision:
        """Reject what cannot be a gain worth having anywhere; the rest is undecided."""
        useful = self.settings.min_gain or self.settings.margin
        figures = _describe([*self.tested, *self.new_classes]) or "there are no test images"
        accuracy = self.settings.new_class_accuracy
        least = f"retrain.new_class_accuracy is {percent(accuracy)}"
        open_classes = [one for one in self.new_classes if one.challenger.get("high", 1.0) >= accuracy]
        if open_classes:
            more = "; ".join(self._more_of_class(one) for one in open_classes[:NAMED])
            return Decision(UNDECIDED, f"Too few test images of the new classes: {figures}; {least}; {more}.")
        # A small delivery of known domains moves the overall accuracy by less than the margin, whatever it is worth.
        places = [one for one in [*self.tested, *self.of_delivery] if one not in self.better]
        unclear = [one for one in places if not _gain(one).is_below(useful)]
        if not unclear and self.better:
            least = f"retrain.min_gain ({_points(self.settings.min_gain)})"
            return Decision(REJECTED, f"The challenger is better, but by less than {least}: {figures}.")
        if not unclear and self.new_classes:
            return Decision(REJECTED, f"The challenger has not learnt the new classes: {figures}; {least}.")
        if self.tested and not unclear and delivered:
            return Decision(REJECTED, f"The challenger is no better: {figures}.")
        # Where the delivered images leave no doubt, it is the others that do.
        lacking = [one for one in unclear if one in self.tested or _gain(one).p_better > self.settings.alpha]
        lacks = "; ".join(f"{one.describe()}, {self._more_to_tell(one, useful)}" for one in lacking) or figures
        none = "" if delivered else "; none of them was delivered"
        what = "gains enough (retrain.min_gain)" if self.better else "is better"
        return Decision(UNDECIDED, f"Too few test images to tell whether the challenger {what}: {lacks}{none}.")

    def _largest_loss(self) -> str:
        """Describe the loss that the one-sided intervals leave possible on what was there, where it is largest."""
        told = [one for one in self.before if not lacking_images(one.images, _gain(one).size, LARGE_LOSS)]
        ends = [(_gain(one).bound(1 - CONFIDENCE, upper=False), one) for one in [*self.older, *told]]
        low, one = min(ends, key=lambda pair: pair[0], default=(0.0, None))
        return f", at most {-100 * low:.1f} points lost {one.where}" if one and low < 0 else ""

    def _lacks(self) -> str:
        few = [f"{one.describe()}, {self._more_to_show(one)}" for one in self.open]
        few += [f"{one.describe()}, which those delivered must not outvote" for one in self.outvoted]
        needed = lacking_images(0, SampleSize(0, 0, estimated=False), self.settings.margin)
        more = f", about {round_up(needed):,} would show it" if needed else ""
        few += [f"there are no test images of {domain}{more}" for domain in self.untested]
        return "; ".join(few)

    def _lost(self) -> str:
        return f"{listed(self.lost_classes, NAMED)}, whose images are gone from the dataset"

    def _more_to_show(self, one: PairedComparison) -> str:
        """Describe how many more test images would show that the challenger is as good."""
        return _more(one, _gain(one).growth_to_exceed(-self.settings.margin, 1 - CONFIDENCE), "show it")

    def _more_to_tell(self, one: PairedComparison, useful: float) -> str:
        """Describe how many more test images would show a gain, or that there is none worth having."""
        gain = _gain(one)
        better = gain.growth_to_be_better(self.settings.alpha / len(self.tested))
        return _more(one, min(better, gain.growth_to_exceed(useful, 1 - CONFIDENCE, below=True)), "tell")

    def _more_of_class(self, one: PairedComparison) -> str:
        """Describe how many more test images would show whether a new class was learnt."""
        if "low" not in one.challenger:
            return f"test images of more groups of {one.what} would tell"
        return _more(one, intervals.growth_to_exclude(one.challenger, self.settings.new_class_accuracy), "tell")


def _more(one: PairedComparison, growth: float, what: str) -> str:
    """Describe how many more test images are needed, if what was seen so far goes on, of how many times those there."""
    if growth == math.inf:
        return f"more images will not {what} if that stays as it is"
    more = round_up(max(math.ceil(one.images * (growth - 1)), 1))
    return f"about {more:,} more test image{'s' if more > 1 else ''}{one.of_it} would {what}"


def round_up(count: int) -> int:
    """Round a number of images up to two digits, as it is an estimate."""
    step: int = 10 ** max(len(str(count)) - 2, 0)
    return -(-count // step) * step


def significantly_better(comparisons: Sequence[PairedComparison], alpha: float) -> list[PairedComparison]:
    """Return where the challenger is better at a family-wise error rate of `alpha` (Holm 1979)."""
    found: list[PairedComparison] = []
    for place, one in enumerate(sorted(comparisons, key=lambda one: _gain(one).p_better)):
        if _gain(one).p_better * (len(comparisons) - place) > alpha:
            break
        found.append(one)
    return found


def _is_upheld(before: PairedComparison, margin: float) -> bool:
    """Whether a domain's images from before do not speak against what those delivered say with them.

    The labels of a delivery may be wrong, and it may be larger than all there was. The images from before may be too
    few to show by themselves that the challenger is as good, but it must not look worse on them: no loss, or the lower
    end of the one-sided 80 % interval above minus the margin. A loss of 10 points they have to exclude like any other
    comparison, unless they are so few that even equal answers on all of them would not.
    """
    gain, large = _gain(before), max(margin, LARGE_LOSS)
    if gain.value < 0 and gain.score(-margin) <= gain.size.quantile(1 - UPHELD):
        return False
    return gain.exceeds(-large) or lacking_images(before.images, gain.size, large) > 0


def _points(share: float) -> str:
    return f"{100 * share:g} point{'' if share == 0.01 else 's'}"


def _gain(comparison: PairedComparison) -> Gain:
    assert comparison.gain is not None  # but for new classes, which are apart
    return comparison.gain


def _describe(comparisons: Sequence[PairedComparison]) -> str:
    more = [f"and {len(comparisons) - NAMED:,} more"] if len(comparisons) > NAMED else []
    return "; ".join([*map(PairedComparison.describe, comparisons[:NAMED]), *more])
