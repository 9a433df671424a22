"""Champion and challenger side by side: a table and a plot."""

from collections.abc import Sequence

from rootstock.evaluation import figures, plots
from rootstock.evaluation.intervals import Interval
from rootstock.evaluation.paired_comparison import (
    ACCURACY,
    BALANCED,
    BEFORE,
    DELIVERY,
    DOMAIN,
    NEW_CLASS,
    OVERALL,
    PairedComparison,
    points,
)
from rootstock.evaluation.plot_style import LIGHT, Theme, png, short
from rootstock.system import escape

MOST_ROWS = 20  # of new classes, of domains, and of those before a delivery


def table(comparisons: Sequence[PairedComparison]) -> str:
    """Format comparisons as a Markdown table; of many new classes or domains, it has the worst."""
    of = f" ({BALANCED})" if measure(comparisons) == BALANCED else ""
    head = [
        f"| test images | count | champion{of} | challenger{of} | gain (points, 95 % interval) | p (one-sided) |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*head, *map(_row, _shown(comparisons))])


def measure(comparisons: Sequence[PairedComparison]) -> str:
    """Return the name of the figure that models are compared by; for a new class both are the same."""
    return BALANCED if any(one.balanced for one in comparisons) else ACCURACY


def _shown(comparisons: Sequence[PairedComparison]) -> list[PairedComparison]:
    left_out: set[int] = set()
    for about in (NEW_CLASS, DOMAIN, BEFORE):
        own = sorted((one for one in comparisons if one.about == about), key=_badness)
        left_out |= set(map(id, own[MOST_ROWS:]))
    return [one for one in comparisons if id(one) not in left_out]


def _badness(one: PairedComparison) -> float:
    """Return what is smallest for the worst: the upper end of the gain, as a few images tell little; or the figure."""
    return one.gain.interval.get("high", 1.0) if one.gain else float(one.challenger["value"])


def _row(comparison: PairedComparison) -> str:
    what = escape.markdown(comparison.title)
    images = f"{comparison.images:,}{figures.in_groups(comparison.images, comparison.groups)}"
    champion, gain, p = "", "", ""
    if comparison.champion and comparison.gain:
        champion = figures.percent(comparison.champion["value"])
        found = points(comparison.gain)
        gain = f"{found['value']} ({found['low']} to {found['high']})" if "low" in found else found["value"]
        p = "< 0.001" if comparison.gain.p_better < 0.001 else f"{comparison.gain.p_better:.3f}"
    challenger = figures.percent(comparison.challenger["value"])
    return f"| {what} | {images} | {champion} | {challenger} | {gain} | {p} |"


def draw(comparisons: Sequence[PairedComparison], theme: Theme = LIGHT) -> bytes:
    """Draw both models' test accuracy with 95 % intervals, one row per comparison of the table, as a PNG."""
    shown = _shown(comparisons)
    names = [f"{one.title if one.about in (OVERALL, DELIVERY) else short(one.title)} ({one.images:,})" for one in shown]
    accuracies: dict[str, list[Interval | None]] = {
        "champion": [one.champion for one in shown],
        "challenger": [one.challenger for one in shown],
    }
    return png(plots.draw_shares(names, accuracies, f"{measure(shown)}, 95 % interval", theme))
