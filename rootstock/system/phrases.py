"""Words with numbers, as a sentence has them."""

from collections.abc import Sequence


def counted(number: int, what: str) -> str:
    """Format a number of things: 1 image, 2,000 images."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int) -> str:
    """Format names: a, b, c; of more than `most` the first: a, b, c and 1,234 more."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def per_second(rate: float, unit: str) -> str:
    """Format a rate: 1,200 images/s, 0.3 images/s, or 23 s each."""
    if 0 < rate < 0.1:
        return f"{1 / rate:,.0f} s each"
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"


def percent(share: float) -> str:
    """Format a share with one decimal; only 1 gives 100 %, only 0 gives 0 %."""
    rounded = round(100 * share, 1)
    if rounded in (0, 100) and share not in (0, 1):
        rounded = 0.1 if rounded == 0 else 99.9
    return f"{rounded:g}%" if rounded in (0, 100) else f"{rounded:.1f}%"
