"""Ending a run at once when it is cancelled: the stages' threads stop at their next image, or the process ends.

Whatever is under way when a process ends is lost and nothing else, since every file is written elsewhere and renamed.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogHandler
from prefect.utilities.asyncutils import run_coro_as_sync

from rootstock import progress
from tasks import versions

GRACE_S = 4.0  # a worker looks every three seconds whether the process is gone, and ten in all are bearable
_asked = threading.Event()


class Stopped(BaseException):
    """The run is to end; no `except Exception` of a loop that survives bad images may survive this."""


@contextmanager
def when_cancelled() -> Iterator[None]:
    """End the work of a flow, which goes on in threads of its own, with the flow."""
    _asked.clear()
    try:
        yield
    except TerminationSignal:
        _asked.set()
        timer = threading.Timer(GRACE_S, _end_process)
        timer.daemon = True
        timer.start()
        raise
    except KeyboardInterrupt:
        _asked.set()
        raise


def check() -> None:
    """Leave a loop whose run is to end."""
    if _asked.is_set():
        raise Stopped("the run was cancelled")


def pause(seconds: float) -> None:
    """Wait, but not for longer than the run is to last."""
    _asked.wait(seconds)
    check()


def stoppable(reporter: progress.Reporter) -> progress.Reporter:
    """Make every report of progress a place where a loop can end."""

    @contextmanager
    def reports(what: str, total: int, unit: str) -> Iterator[progress.Advance]:
        with reporter(what, total, unit) as advance:

            def advance_or_leave(n: int) -> None:
                check()
                advance(n)

            yield advance_or_leave

    return reports


def _end_process() -> None:
    run_coro_as_sync(APILogHandler.aflush())
    with versions.at_rest(timeout_s=GRACE_S / 2):
        os._exit(143)  # as SIGTERM would have, had Prefect not caught it
