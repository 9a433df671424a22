"""How far a path of fits has come, in passes over the features; how many there will be is estimated anew as it goes."""

import math
from collections.abc import Sequence

import numpy as np

from rootstock.system import progress

TYPICAL = 50  # passes of the first strength
ENOUGH = 8  # falls of the objective from which it is estimated when a fit converges


class PassProgress:
    """Reports each pass.

    Args:
        advance: of a report that begins with `expected` passes; None reports nothing.
        strengths: how many are fitted.
        max_iterations: of each.
        tolerance: fall of the objective, as a share of its value at the start, that ends a fit.
    """

    def __init__(self, advance: progress.Advance | None, strengths: int, max_iterations: int, tolerance: float) -> None:
        self._advance = advance or progress.nowhere
        self._most, self._tolerance = max_iterations, tolerance
        self._left, self._each = strengths, _first_estimate(max_iterations)
        self._passes, self._expected = 0, self._each  # of the strength that is being fitted
        self._objectives, self._ended = list[float](), list[int]()
        self._before, self._total = 0, expected(strengths, max_iterations)

    def one(self, *, is_kept: bool) -> None:
        """Report a pass; one of an interrupted run takes no time. Until the strength ends, another one will follow."""
        self._passes += 1
        self._expected = max(self._expected, self._passes + 1)
        self._report(int(not is_kept), int(is_kept))

    def reached(self, objective: float) -> None:
        """Take the objective at the start of a fit, and then of each pass, relative to that at the start."""
        self._objectives.append(objective)
        if self._advance is not progress.nowhere and (end := _converges(self._objectives, self._tolerance)):
            left = min(end, self._most) - (len(self._objectives) - 1)
            self._expected = self._passes + max(left, 1)
            self._report()

    def strength(self, *, is_kept: bool) -> None:
        """Report the end of a strength: those to come are expected to take as many passes as those before did."""
        if not is_kept:
            self._ended.append(self._passes)
            self._each = round(sum(self._ended) / len(self._ended))
        self._left -= 1
        self._before += self._passes
        self._passes, self._expected, self._objectives = 0, self._each, []
        self._report()

    def _report(self, done: int = 0, skip: int = 0) -> None:
        total = self._before
        if self._left:
            total += self._expected + (self._left - 1) * self._each
        self._advance(done, skip=skip, more=total - self._total)
        self._total = total


def expected(strengths: int, max_iterations: int) -> int:
    """Return how many passes to expect before any has been made."""
    return strengths * _first_estimate(max_iterations)


def _first_estimate(max_iterations: int) -> int:
    return min(TYPICAL, max_iterations + 1)


def _converges(objectives: Sequence[float], tolerance: float) -> int | None:
    """Return after how many passes the objective will fall by less than the tolerance, if its falls shrink as so far.

    They do so geometrically, by and large. None if there are too few, or they do not shrink.
    """
    falls = -np.diff(np.minimum.accumulate(objectives))
    fell = np.flatnonzero(falls > 0)
    if len(fell) < ENOUGH:
        return None
    slope, first = np.polyfit(fell + 1, np.log(falls[fell]), 1)
    return math.ceil((math.log(tolerance) - first) / slope) if slope < 0 else None
