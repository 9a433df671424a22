"""Whether this run is to end: asked for in one thread, noticed by the others wherever they wait or report progress."""

import threading

_asked = threading.Event()


class Stopped(BaseException):
    """The run is to end; no `except Exception` of a loop that survives bad images may survive this."""


def ask() -> None:
    """Have every thread of this process leave its work at the next place where it looks."""
    _asked.set()


def forget() -> None:
    """Begin a new run."""
    _asked.clear()


def check() -> None:
    """Leave a loop whose run is to end.

    Raises:
        Stopped: it is.
    """
    if _asked.is_set():
        raise Stopped("the run was cancelled")


def pause(seconds: float) -> None:
    """Wait, but not for longer than the run is to last.

    Raises:
        Stopped: it is to end.
    """
    _asked.wait(seconds)
    check()
