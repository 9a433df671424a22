"""Log lines and progress of a task, shown in its Prefect run and on the terminal."""

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from prefect.settings import PREFECT_API_URL

from rootstock.system import progress
from rootstock.system.entry_points import DETAIL
from rootstock.system.escape import markdown
from tasks.bridge import artifacts, cancellation, termination

RunLogger = logging.Logger | logging.LoggerAdapter[logging.Logger]
REPORT_EVERY_S = 1.0  # an artifact is a row in the server's database
REPORT_AGAIN_S = 600.0  # after the server did not answer, for which the client waits a minute
_run_of: dict[int, RunLogger] = {}  # by thread, the flow's first
_changing_runs = threading.Lock()


@contextmanager
def reporting() -> Iterator[None]:
    """Show a task's log lines and progress in its run, and stop the task at its next progress report if asked to."""
    reporter = termination.stoppable(_reporter())
    with progress.report_to(reporter, pulse=cancellation.check), logging_to(get_run_logger()):
        yield


@contextmanager
def logging_to(run: RunLogger) -> Iterator[None]:
    """Send what this thread logs to a run; threads without a run of their own log to the flow."""
    thread = threading.get_ident()  # stages run side by side, each in a thread of its own
    with _changing_runs:
        before = _run_of.get(thread)
        _run_of[thread] = run
        _attach(True)
    try:
        yield
    finally:
        with _changing_runs:
            if before:
                _run_of[thread] = before
            else:
                del _run_of[thread]
            _attach(bool(_run_of))


class _ToRun(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        runs = _run_of.copy()
        if run := runs.get(record.thread or 0) or next(iter(runs.values()), None):
            extra = DETAIL if getattr(record, "detail", False) else None
            run.log(record.levelno, record.getMessage(), extra=extra)


_to_run = _ToRun(logging.INFO)


def _attach(attached: bool) -> None:
    """Attach our loggers to runs, or detach them."""
    for name in ("rootstock", "tasks"):
        logger = logging.getLogger(name)
        if attached:
            logger.addHandler(_to_run)
            logger.setLevel(logging.INFO)
        else:
            logger.removeHandler(_to_run)
        logger.propagate = not attached  # else each line would be on the terminal twice


def _reporter() -> progress.Reporter:
    """Return where progress is shown: in the UI of a server, else on the terminal."""
    return _artifact if PREFECT_API_URL.value() else progress.terminal


@contextmanager
def _artifact(what: str, total: int, unit: str) -> Iterator[progress.Advance]:
    """Report to a progress artifact of the task run, and to the terminal."""
    run = TaskRunContext.get()
    key = "-".join([re.sub("[^a-z0-9]+", "-", what.lower()), *([run.task_run.id.hex[-8:]] if run else [])])
    tally = progress.Tally(what, total, unit)
    shown = _Shown(key, tally)
    shown.report()
    with progress.terminal(what, total, unit) as on_terminal:

        def advance(n: int, *, skip: int = 0, more: int = 0, **counts: int) -> None:
            on_terminal(n, skip=skip, more=more, **counts)
            tally.add(n, skip=skip, more=more, **counts)
            if time.monotonic() >= shown.due:
                shown.report()

        yield advance
    if shown.is_seen:
        shown.report()


class _Shown:
    """A progress artifact; a server that does not answer stops no training."""

    def __init__(self, key: str, tally: progress.Tally) -> None:
        self.key, self.tally = key, tally
        self.artifact: UUID | None = None
        self.is_seen, self.due = True, 0.0

    def report(self) -> None:
        """Update the artifact, and schedule the next update."""
        self.is_seen = artifacts.unless_it_fails(self._put)
        self.due = time.monotonic() + (REPORT_EVERY_S if self.is_seen else REPORT_AGAIN_S)

    def _put(self) -> None:
        said = markdown(self.tally)
        if self.artifact:
            update_progress_artifact(self.artifact, self.tally.percent, description=said)
        else:
            self.artifact = cast(UUID, create_progress_artifact(self.tally.percent, key=self.key, description=said))
