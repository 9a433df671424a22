"""How far a path of fits has come, in passes over the features; how many there will be is estimated anew as it goes."""

from rootstock.system import progress

TYPICAL = 50  # passes of the first strength


class PassProgress:
    """Reports each pass.

    Args:
        advance: of a report that begins with `expected` passes; None reports nothing.
        strengths: how many are fitted.
        max_iterations: of each.
    """

    def __init__(self, advance: progress.Advance | None, strengths: int, max_iterations: int) -> None:
        self._advance = advance or progress.nowhere
        self._left, self._each = strengths, _first_estimate(max_iterations)
        self._passes, self._ended = 0, list[int]()

    def one(self, *, is_kept: bool) -> None:
        """Report a pass; one of an interrupted run takes no time."""
        self._passes += 1
        more = int(self._passes > self._each)
        self._advance(int(not is_kept), skip=int(is_kept), more=more)

    def strength(self, *, is_kept: bool) -> None:
        """Report the end of a strength: those to come are expected to take as many passes as those before did."""
        self._left -= 1
        more = min(self._passes - self._each, 0)
        if not is_kept:
            self._ended.append(self._passes)
        each = round(sum(self._ended) / len(self._ended)) if self._ended else self._each
        self._advance(0, more=more + self._left * (each - self._each))
        self._each, self._passes = each, 0


def expected(strengths: int, max_iterations: int) -> int:
    """Return how many passes to expect before any has been made."""
    return strengths * _first_estimate(max_iterations)


def _first_estimate(max_iterations: int) -> int:
    return min(TYPICAL, max_iterations + 1)
