"""Two models side by side on some of the test images: accuracies, gain, and a phrase that describes them."""

from dataclasses import dataclass
from typing import Any

from rootstock.evaluation import figures
from rootstock.evaluation.intervals import Interval
from rootstock.evaluation.paired import Gain

# What a comparison is about: all test images, those of a domain, of a new class, or those that this delivery brought.
OVERALL, DOMAIN, NEW_CLASS, DELIVERY = "overall", "domain", "new class", "delivery"
BEFORE = "before"  # those of a domain that were there before this delivery, which has others of it
ACCURACY, BALANCED = "test accuracy", "balanced test accuracy"
DELIVERED, UNSEEN = "the images delivered", "never looked at (unbiased)"


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


def points(gain: Gain) -> dict[str, str]:
    """Format a gain in percentage points: value, low and high, the last two only where there is an interval."""
    return {end: f"{100 * share:+.1f}" for end, share in gain.interval.items()}


def _describe_gain(gain: Gain) -> str:
    found = points(gain)
    ends = f"{found['low']} to {found['high']}" if "low" in found else "too few for an interval"
    return f"gain {found['value']} points, {ends}"
