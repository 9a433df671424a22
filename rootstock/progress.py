"""Progress of long loops: a bar on a terminal, or what the door in use puts in its place."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
Advance = Callable[[int], None]
Reporter = Callable[[str, int, str], AbstractContextManager[Advance]]


@contextmanager
def terminal(what: str, total: int, unit: str) -> Iterator[Advance]:
    """Draw a bar on standard error; nothing where that is not a terminal."""
    with tqdm(total=total, desc=what, unit=f" {unit}", disable=None, leave=False) as bar:

        def advance(n: int) -> None:
            bar.update(n)

        yield advance


_reporter: ContextVar[Reporter] = ContextVar("reporter", default=terminal)


@contextmanager
def report_to(reporter: Reporter) -> Iterator[None]:
    """Send the progress of everything inside the block to `reporter`."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def bar(what: str, total: int, unit: str = "images") -> AbstractContextManager[Advance]:
    """Open a progress report of `total` units; the block gets a function that advances it."""
    return _reporter.get()(what, total, unit)


def track(items: Iterable[T], what: str, total: int, unit: str = "images") -> Iterator[T]:
    """Pass items on and report each as one unit."""
    with bar(what, total, unit) as advance:
        for item in items:
            yield item
            advance(1)
