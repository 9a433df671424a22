"""Progress of long loops: a bar on a terminal, elsewhere a line every ten seconds, or what a flow reports it to."""

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

from tqdm import tqdm

from rootstock.system import escape, phrases

T = TypeVar("T")
LINE_EVERY_S = 10.0  # where there is no terminal to draw a bar on
RECENT_S = 60.0


class Advance(Protocol):
    """Reports that `n` more units are done, with optional extra counts: `cached=100`, `rejected=1`."""

    def __call__(self, n: int, *, skip: int = 0, more: int = 0, **counts: int) -> None:
        """Advance by `n`, and by `skip` units that take no time, e.g. those of an interrupted run.

        Where the total is an estimate, `more` corrects it.
        """


Reporter = Callable[[str, int, str], AbstractContextManager[Advance]]


@contextmanager
def terminal(what: str, total: int, unit: str) -> Iterator[Advance]:
    """Draw a bar on standard error; where that is no terminal with a width, print a line every ten seconds."""
    if not sys.stderr.isatty() or os.get_terminal_size(sys.stderr.fileno()).columns == 0:
        with _lines(what, total, unit) as advance_line:
            yield advance_line
        return
    with tqdm(total=total, desc=what, unit=f" {unit}", leave=False) as bar:
        beside: Counter[str] = Counter()

        def advance(n: int, *, skip: int = 0, more: int = 0, **counts: int) -> None:
            nonlocal total
            bar.total = total = total + more
            if counts:
                beside.update(counts)
                bar.set_postfix(beside, refresh=False)
            if skip:  # they are in no rate of tqdm's
                bar.n, bar.initial, bar.last_print_n = bar.n + skip, bar.initial + skip, bar.last_print_n + skip
            bar.update(n)

        yield advance


@contextmanager
def _lines(what: str, total: int, unit: str) -> Iterator[Advance]:
    tally, due = Tally(what, total, unit), time.monotonic() + LINE_EVERY_S

    def advance(n: int, *, skip: int = 0, more: int = 0, **counts: int) -> None:
        nonlocal due
        tally.add(n, skip=skip, more=more, **counts)
        if time.monotonic() >= due:
            print(escape.printable(str(tally)), file=sys.stderr, flush=True)
            due = time.monotonic() + LINE_EVERY_S

    yield advance


def nowhere(n: int, *, skip: int = 0, more: int = 0, **counts: int) -> None:
    """Report nothing."""


@contextmanager
def silent() -> Iterator[Advance]:
    """Report nothing."""
    yield nowhere


class Tally:
    """Progress as text: done, total, rate, time left and extra counts.

    The rate is that of the last minute, or of the second half of the time, if that is longer: what was slow at the
    beginning says nothing of the time left.
    """

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self.skipped, self.beside, self.begin = 0, 0, Counter[str](), time.monotonic()
        self.earlier = deque([(self.begin, 0)])  # times, and what had been done, in order

    def add(self, n: int, *, skip: int = 0, more: int = 0, **counts: int) -> None:
        """Advance by `n`, and by `skip` units that took no time; correct the total by `more`."""
        self.total += more
        self.done += n + skip
        self.skipped += skip
        self.beside.update(counts)
        now = time.monotonic()
        if now - self.earlier[-1][0] >= max(1.0, (now - self.begin) / 100):
            self.earlier.append((now, self.done - self.skipped))
            while len(self.earlier) > 1 and now - self.earlier[1][0] >= self._window(now):
                self.earlier.popleft()

    def _window(self, now: float) -> float:
        """Return of how many seconds the rate is."""
        return max(RECENT_S, (now - self.begin) / 2)

    @property
    def percent(self) -> float:
        """Return the progress in percent."""
        return min(100.0, 100.0 * self.done / self.total) if self.total else 100.0

    def __str__(self) -> str:
        """Format as e.g. `extract: 500 of 1,797 images, 120 images/s, 11 s left`."""
        parts = [f"{self.what}: {self.done:,} of {self.total:,} {self.unit}"]
        now = time.monotonic()
        recent = (one for one in self.earlier if 1 < now - one[0] <= self._window(now))
        since, before = next(recent, self.earlier[0])
        seconds, done = now - since, self.done - self.skipped - before
        if done and seconds > 1:
            rate = done / seconds
            parts.append(phrases.per_second(rate, self.unit))
            if self.done < self.total:
                parts.append(f"{_minutes((self.total - self.done) / rate)} left")
        return ", ".join([*parts, *(f"{count:,} {name}" for name, count in self.beside.items())])


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


_reporter: ContextVar[Reporter] = ContextVar("reporter", default=terminal)
_pulse: ContextVar[Callable[[], None]] = ContextVar("pulse", default=lambda: None)


@contextmanager
def report_to(reporter: Reporter, pulse: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Send all progress inside the block to `reporter`, and call `pulse` about every second of a long wait."""
    tokens = _reporter.set(reporter), _pulse.set(pulse)
    try:
        yield
    finally:
        _reporter.reset(tokens[0])
        _pulse.reset(tokens[1])


def pulse() -> None:
    """Say that a loop is still waiting, so that a run can be stopped in it."""
    _pulse.get()()


def bar(what: str, total: int, unit: str = "images") -> AbstractContextManager[Advance]:
    """Open a progress report of `total` units; the context manager yields a function that advances it."""
    return _reporter.get()(what, total, unit)


def track(items: Iterable[T], what: str, total: int, unit: str = "images") -> Iterator[T]:
    """Yield the items and report each as one unit."""
    with bar(what, total, unit) as advance:
        for item in items:
            yield item
            advance(1)
