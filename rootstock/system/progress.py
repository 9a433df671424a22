"""Progress of long loops: a bar on a terminal, elsewhere a line every ten seconds, or what a flow reports it to."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

from tqdm import tqdm

from rootstock.system import escape

T = TypeVar("T")
LINE_EVERY_S = 10.0  # where there is no terminal to draw a bar on


class Advance(Protocol):
    """Reports that `n` more units are done, with optional extra counts: `cached=100`, `rejected=1`."""

    def __call__(self, n: int, **counts: int) -> None:
        """Advance by `n`."""


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

        def advance(n: int, **counts: int) -> None:
            if counts:
                beside.update(counts)
                bar.set_postfix(beside, refresh=False)
            bar.update(n)

        yield advance


@contextmanager
def _lines(what: str, total: int, unit: str) -> Iterator[Advance]:
    tally, due = Tally(what, total, unit), time.monotonic() + LINE_EVERY_S

    def advance(n: int, **counts: int) -> None:
        nonlocal due
        tally.add(n, **counts)
        if time.monotonic() >= due:
            print(escape.printable(str(tally)), file=sys.stderr, flush=True)
            due = time.monotonic() + LINE_EVERY_S

    yield advance


@contextmanager
def silent() -> Iterator[Advance]:
    """Report nothing."""

    def advance(n: int, **counts: int) -> None:
        pass

    yield advance


class Tally:
    """Progress as text: done, total, rate, time left and extra counts."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self.beside, self.begin = 0, Counter[str](), time.monotonic()

    def add(self, n: int, **counts: int) -> None:
        """Advance by `n`."""
        self.done += n
        self.beside.update(counts)

    @property
    def percent(self) -> float:
        """Return the progress in percent."""
        return min(100.0, 100.0 * self.done / self.total) if self.total else 100.0

    def __str__(self) -> str:
        """Format as e.g. `extract: 500 of 1,797 images, 120 images/s, 11 s left`."""
        parts = [f"{self.what}: {self.done:,} of {self.total:,} {self.unit}"]
        seconds = time.monotonic() - self.begin
        if self.done and seconds > 1:
            rate = self.done / seconds
            parts.append(f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.1f} {self.unit}/s")
            if self.done < self.total:
                parts.append(f"{_minutes((self.total - self.done) / rate)} left")
        return ", ".join([*parts, *(f"{count:,} {name}" for name, count in self.beside.items())])


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


_reporter: ContextVar[Reporter] = ContextVar("reporter", default=terminal)


@contextmanager
def report_to(reporter: Reporter) -> Iterator[None]:
    """Send all progress inside the block to `reporter`."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def bar(what: str, total: int, unit: str = "images") -> AbstractContextManager[Advance]:
    """Open a progress report of `total` units; the context manager yields a function that advances it."""
    return _reporter.get()(what, total, unit)


def track(items: Iterable[T], what: str, total: int, unit: str = "images") -> Iterator[T]:
    """Yield the items and report each as one unit."""
    with bar(what, total, unit) as advance:
        for item in items:
            yield item
            advance(1)
