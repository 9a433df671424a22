"""The flag that cancels this run: set in one thread, checked by the others wherever they wait or report progress."""

import threading

_asked = threading.Event()


class Stopped(BaseException):
    """The run was cancelled; not an Exception, so that loops that skip bad images do not swallow it."""


def ask() -> None:
    """Ask every thread of this process to stop at its next check."""
    _asked.set()


def forget() -> None:
    """Clear the flag for a new run."""
    _asked.clear()


def check() -> None:
    """Stop if the run was cancelled.

    Raises:
        Stopped: it was.
    """
    if _asked.is_set():
        raise Stopped("the run was cancelled")


def pause(seconds: float) -> None:
    """Sleep, or stop as soon as the run is cancelled.

    Raises:
        Stopped: it was cancelled.
    """
    _asked.wait(seconds)
    check()
