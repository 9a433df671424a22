"""A stage as a Prefect task: skipped when DVC says it is up to date, recorded by DVC when it ran."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed
from prefect.tasks import Task

from rootstock import progress
from rootstock.params import Params
from tasks import versions
from tasks.stage import Stage

RunLogger = logging.Logger | logging.LoggerAdapter[logging.Logger]
REPORT_EVERY_S = 1.0  # an artifact is a row in the server's database


@dataclass(frozen=True)
class Outcome:
    """How a stage of a flow ended: `did` is ran, restored or cached."""

    stage: str
    did: str
    seconds: float
    note: str


@cache
def as_task(stage: Stage) -> Task[..., Any]:
    """Make the Prefect task of a stage."""

    @task(name=stage.name, description=stage.function.__doc__, task_run_name=stage.name)
    def run(params: Params) -> State[Outcome]:
        return bring_up_to_date(stage, params)

    return run


def bring_up_to_date(stage: Stage, params: Params) -> State[Outcome]:
    """Do what `dvc repro` would: nothing, restore an earlier run, or do the work and record it."""
    log = get_run_logger()
    start = time.perf_counter()

    def ended(did: str, note: str) -> State[Outcome]:
        outcome = Outcome(stage.name, did, time.perf_counter() - start, note)
        return Completed(name="Completed" if did == "ran" else "Cached", message=note, data=outcome)

    reasons = versions.stale(stage.name)
    if not reasons:
        return ended("cached", "up to date")
    log.info("Runs because %s", "; ".join(reasons))
    if versions.restore(stage.name):
        return ended("restored", "an earlier run's outputs, from DVC's run-cache")
    with progress.report_to(_reporter()), _logging_to(log):
        summary = stage(params)
    if reasons == [versions.ALWAYS] and not summary.changed:
        return ended("cached", summary.note)
    versions.commit(stage.name)
    return ended("ran", summary.note)


@contextmanager
def _logging_to(run: RunLogger) -> Iterator[None]:
    """Show what the work logs among the logs of the run."""
    ours = [logging.getLogger(name) for name in ("rootstock", "tasks")]
    here = threading.get_ident()  # stages run side by side, each in a thread of its own

    class ToRun(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == here:
                run.log(record.levelno, record.getMessage())

    handler = ToRun(logging.INFO)
    for logger in ours:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in ours:
            logger.removeHandler(handler)


def _reporter() -> progress.Reporter:
    """Show progress where the run is watched: in the UI of a server, else on the terminal."""
    return _artifact if PREFECT_API_URL.value() else progress.terminal


@contextmanager
def _artifact(what: str, total: int, unit: str) -> Iterator[progress.Advance]:
    """Report to a progress artifact of the task run, and to the terminal."""
    run = TaskRunContext.get()
    key = "-".join([what.replace("_", "-"), *([run.task_run.id.hex[:8]] if run else [])])
    artifact = cast(UUID, create_progress_artifact(0.0, key=key, description=f"{what}: 0 of {total} {unit}"))
    done, reported = 0, time.monotonic()

    def report() -> None:
        share = 100.0 * done / total if total else 100.0
        update_progress_artifact(artifact, min(share, 100.0), description=f"{what}: {done} of {total} {unit}")

    with progress.terminal(what, total, unit) as on_terminal:

        def advance(n: int) -> None:
            nonlocal done, reported
            on_terminal(n)
            done += n
            if time.monotonic() - reported >= REPORT_EVERY_S:
                report()
                reported = time.monotonic()

        yield advance
    report()
