"""A stage as a Prefect task: skipped when DVC says it is up to date, recorded by DVC when it ran."""

import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial, wraps
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, ParamSpec, TypeVar
from urllib.error import HTTPError
from weakref import WeakSet

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed
from prefect.tasks import Task

from rootstock.config.params import Params
from rootstock.system.causes import NETWORK
from rootstock.system.entry_points import DETAIL, end_quickly
from rootstock.system.errors import DamagedError, RootstockError
from tasks.bridge import (
    artifacts,
    cancellation,
    causes,
    dvc_remote,
    early_imports,
    handoff,
    run_params,
    terminal,
    termination,
    versions,
)
from tasks.bridge.reporting import RunLogger, logging_to, reporting
from tasks.bridge.stage import HERE, Stage
from tasks.bridge.workspace import PARAMS

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)
_logged: WeakSet[RootstockError] = WeakSet()
RETRY_AFTER_S = [10.0, 60.0]
AGAIN = "Start the run again to use what is there now."


@dataclass(frozen=True)
class Outcome:
    """How a stage of a flow ended: `did` is ran, restored or cached."""

    stage: str
    did: str
    seconds: float
    note: str

    @property
    def result(self) -> str:
        """Describe what it did, in a line."""
        return self.note if self.did == "ran" else f"{self.did}: {self.note}"


@cache
def as_task(stage: Stage) -> Task[..., Any]:
    """Make the Prefect task of a stage; errors of the network are retried, others are final."""

    @task(
        name=stage.name,
        description=stage.function.__doc__,
        task_run_name=stage.name,
        retries=len(RETRY_AFTER_S),
        retry_delay_seconds=RETRY_AFTER_S,
        retry_condition_fn=_may_pass,
    )
    @reported_task
    def run(params: Params, where: str = HERE) -> State[Any]:
        outcome = bring_up_to_date(stage, params, where)
        terminal.show_stage(stage.name, outcome.seconds, outcome.result)
        artifacts.show(stage.name)
        return Completed(name="Completed" if outcome.did == "ran" else "Cached", message=outcome.note, data=outcome)

    return run


def submit(
    stage: Stage, params: Params, *, wait_for: Sequence[PrefectFuture[Outcome]] = (), where: str = HERE
) -> PrefectFuture[Outcome]:
    """Start a stage as a Prefect task of the running flow; a stage that is up to date ends as Cached.

    Args:
        stage: of dvc.yaml.
        params: all parameters.
        wait_for: the stages whose outputs it reads.
        where: here, or the deployment that does the work on another machine.
    """
    future: Any = as_task(stage).submit(params, where, wait_for=list(wait_for))
    return future  # type: ignore[no-any-return]


def bring_up_to_date(stage: Stage, params: Params, where: str = HERE) -> Outcome:
    """Do what `dvc repro` would: nothing, restore an earlier run, or do the work and record it.

    Args:
        stage: of dvc.yaml.
        params: all parameters.
        where: here, or the deployment that does the work on another machine.
    """
    log = get_run_logger()
    start = time.perf_counter()

    def ended(did: str, note: str) -> Outcome:
        return Outcome(stage.name, did, time.perf_counter() - start, note)

    if edited := run_params.edits(params, partial(dvc_remote.sections_of, stage.name)):
        raise RootstockError(f"{PARAMS} was edited during this run ({'; '.join(edited)}). {AGAIN}")
    reasons = versions.stale(stage.name)
    if not reasons:
        return ended("cached", "up to date")
    log.info("Runs because %s", "; ".join(reasons), extra=DETAIL)
    if versions.restore(stage.name):
        return ended("restored", "an earlier run's outputs, from DVC's run-cache")
    ran_with = versions.inputs_of(stage.name)
    summary = None if where == HERE else handoff.run_elsewhere(stage.name, params, where)
    if summary is None:
        early_imports.wait()
        summary = stage(params)
    if reasons == [versions.ALWAYS] and not summary.changed:
        return ended("cached", summary.note)
    if changed := versions.commit(stage.name, ran_with):
        was = f"While {stage.name} ran, {'; '.join(changed)}"
        raise RootstockError(f"{was}. It is recorded with the values it ran with, so it is stale. {AGAIN}")
    return ended("ran", summary.note)


def reported_task(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a task's function: show its log and progress; it ends as Failed with a sentence, or as Cancelled."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        ended: State[Any]  # Prefect takes a returned state as the task's own
        try:
            with causes.described(), reporting():
                return function(*args, **kwargs)
        except RootstockError as error:
            ended = failed(error)
        except cancellation.Stopped as stopped:
            ended = Cancelled(message=str(stopped))
        return ended  # type: ignore[return-value]

    return run


@contextmanager
def reported_flow() -> Iterator[RunLogger]:
    """Run a flow's block: cancelling ends it at once, known errors become sentences; yields the run's logger.

    Raises:
        RootstockError: any known error in the block.
    """
    causes.keep_stacks_off()
    end_quickly()
    # Prefect logs an error again when the process ends, with its stack, and for each later stage.
    for name in ("prefect.flow_runs", "prefect.engine", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_is_new)
    log = get_run_logger()
    with causes.described(), logging_to(log), termination.when_cancelled():
        yield log


def failed(error: RootstockError) -> State[Any]:
    """Return a failed state with the message of an error; if raised, Prefect would show its own stack."""
    if error not in _logged:  # the flow's log already has an error of a task
        get_run_logger().error("%s", error, extra=DETAIL)  # a command ends with this message anyway
        _logged.add(error)
    return Failed(message=str(error), data=error)


def _is_new(record: logging.LogRecord) -> bool:
    known = record.exc_info and isinstance(record.exc_info[1], RootstockError)
    return not known and "in state NotReady" not in record.getMessage()


def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether the network is at fault, so that a retry may help; logs the retry."""
    may_pass = _is_of_the_network(state.data)
    if may_pass and run.run_count <= len(RETRY_AFTER_S):
        log.warning("%s: %s Retrying in %.0f s.", run.name, state.message, RETRY_AFTER_S[run.run_count - 1])
    return may_pass


def _is_of_the_network(cause: Any) -> bool:  # noqa: ANN401
    if isinstance(cause, DamagedError):
        return False
    while cause := getattr(cause, "__cause__", None):
        match cause:
            case HTTPError(code=code):
                return code >= HTTPStatus.INTERNAL_SERVER_ERROR or code == HTTPStatus.TOO_MANY_REQUESTS
            case FileNotFoundError() | PermissionError() | NotADirectoryError() | IsADirectoryError():
                pass  # final, unless a driver says so of a store that does not answer
            case socket.gaierror() | ssl.SSLError():
                return True
            case OSError(errno=int() as code) if code not in NETWORK:
                pass  # a full disk, a limit of the system: a person has to see to it
            case OSError() | HTTPException():
                return True
    return False
