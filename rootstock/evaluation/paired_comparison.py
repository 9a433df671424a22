"""Two models side by side on some of the test images: accuracies, gain, and a phrase that describes them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rootstock.evaluation import class_means, figures, intervals, paired
from rootstock.evaluation.intervals import Interval
from rootstock.evaluation.paired import Gain

# What a comparison is about: all test images, those of a domain, of a new class, or those that this delivery brought.
OVERALL, DOMAIN, NEW_CLASS, DELIVERY = "overall", "domain", "new class", "delivery"
BEFORE = "before"  # those of a domain that were there before this delivery, which has others of it
ACCURACY, BALANCED = "test accuracy", "balanced test accuracy"
DELIVERED, UNSEEN = "the images delivered of older domains", "never looked at (unbiased)"


@dataclass(frozen=True)
class PairedOutcomes:
    """What both models answered on test images: arrays (n,).

    Args:
        domains: of the images.
        labels: of the images.
        groups: any integers.
        known: whether the champion knows the class.
        delivered: whether the image arrived with this delivery.
        unseen: whether no other model has been measured on the image.
        champion: whether the champion is correct.
        challenger: whether the challenger is correct.
    """

    domains: NDArray[np.object_]
    labels: NDArray[np.object_]
    groups: NDArray[np.int64]
    known: NDArray[np.bool_]
    delivered: NDArray[np.bool_]
    unseen: NDArray[np.bool_]
    champion: NDArray[np.bool_]
    challenger: NDArray[np.bool_]

    def where(self, chosen: NDArray[np.bool_]) -> "PairedOutcomes":
        """Return those of some of the images."""
        return PairedOutcomes(**{name: values[chosen] for name, values in vars(self).items()})

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


@dataclass(frozen=True)
class PairedComparison:
    """Both models on a subset of the test images: accuracy with 95 % intervals, and the gain.

    The images are of classes that both models know, but for a new class, where `champion` and `gain` are None.
    Accuracy is balanced over classes if `retrain.measure` says so; but for a new class, of which it is the recall.
    """

    about: str
    what: str
    images: int
    groups: int
    challenger: Interval
    champion: Interval | None = None
    gain: Gain | None = None
    balanced: bool = False

    @property
    def measure(self) -> str:
        """Return the name of the figure."""
        return BALANCED if self.balanced else ACCURACY

    @property
    def where(self) -> str:
        """Describe on which images."""
        named = {OVERALL: "overall", NEW_CLASS: f"on the new class {self.what}", BEFORE: f"on {self.title}"}
        return named.get(self.about, f"on {self.what}")

    @property
    def title(self) -> str:
        """Name the images in a table or a plot."""
        return f"{self.what} before this delivery" if self.about == BEFORE else self.what

    @property
    def of_it(self) -> str:
        """Describe of which domain or new class images are, where they are of one."""
        return f" of {self.what}" if self.about in (DOMAIN, NEW_CLASS, BEFORE) else ""

    def describe(self) -> str:
        """Describe the comparison in a phrase."""
        accuracy = f"{figures.percent(self.challenger['value'])} {self.measure}"
        images = figures.count_images(self.images, self.groups)
        if self.champion is None or self.gain is None:
            return f"{accuracy} {self.where} ({images}, {figures.describe_interval(self.challenger)})"
        before = figures.percent(self.champion["value"])
        return f"{accuracy} {self.where}, champion {before} ({images}, {_describe_gain(self.gain)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for the history."""
        figures = {
            name: getattr(self, name)
            for name in ("about", "what", "images", "groups", "measure", "challenger", "champion")
        }
        gain = self.gain
        return figures | {"gain": gain.interval if gain else None, "p": gain.p_better if gain else None}


def compare(
    about: str, what: str, images: PairedOutcomes, *, measure: str = "accuracy", seed: int = 0
) -> PairedComparison:
    """Compare the models on one or more images, all of classes that both know."""
    champion, challenger, groups = images.champion, images.challenger, images.groups
    differences = challenger.astype(np.int64) - champion
    if balanced := measure == "balanced_accuracy":
        labels = np.unique(images.labels, return_inverse=True)[1]
        before, after = (class_means.balanced_share(hits, labels, groups) for hits in (champion, challenger))
        gain = paired.gain(differences, groups, class_means.balancing_weights(labels), seed)
    else:
        before, after = (intervals.share(hits, groups) for hits in (champion, challenger))
        gain = paired.gain(differences, groups)
    return PairedComparison(about, what, len(images), len(np.unique(groups)), after, before, gain, balanced)


def compare_new_class(label: str, images: PairedOutcomes) -> PairedComparison:
    """Measure the challenger on images of a class that only it knows."""
    share = intervals.share(images.challenger, images.groups, within_class=True)
    return PairedComparison(NEW_CLASS, label, len(images), len(np.unique(images.groups)), share)


def points(gain: Gain) -> dict[str, str]:
    """Format a gain in percentage points: value, low and high, the last two only where there is an interval."""
    return {end: f"{100 * share:+.1f}" for end, share in gain.interval.items()}


def _describe_gain(gain: Gain) -> str:
    found = points(gain)
    too_few = f"too few {'of rare classes ' if gain.size.few_heavy else ''}for an interval"
    ends = f"{found['low']} to {found['high']}" if "low" in found else too_few
    return f"gain {found['value']} points, {ends}"
