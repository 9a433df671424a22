"""Ending a run at once when it is cancelled, or when the worker that runs it is stopped.

Whatever is under way when a process ends is lost and nothing else, since every file is written elsewhere and renamed.
So a worker's process says how it ends and is gone. Prefect's worker looks for it every three seconds, and then starts
a process for the flow's hooks before it says that the run is cancelled: too late for who waits at a busy machine. On a
terminal, the stages' threads stop at their next image.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Cancelling, Crashed
from prefect.utilities.asyncutils import run_coro_as_sync

from rootstock.system import progress
from tasks.bridge import cancellation, run_params, versions, workspace

RECORD_S, SAY_S = 1.0, 4.0  # together less than the six seconds after which a worker looks a second time
EXIT_STATUS = 128 + signal.SIGTERM


@contextmanager
def when_cancelled() -> Iterator[None]:
    """End the work of a flow, which goes on in threads of its own, with the flow."""
    cancellation.forget()
    run = flow_run.id
    with _on_sigterm(run) if run and PREFECT_API_URL.value() else nullcontext():
        try:
            yield
        except (TerminationSignal, KeyboardInterrupt):
            cancellation.ask()
            raise


@contextmanager
def _on_sigterm(run: str) -> Iterator[None]:
    """End this process beside its main thread, which may be inside a long transfer; Prefect's way waits for that."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Thread(target=_end_process, args=(UUID(run),)).start()

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_process(run: UUID) -> None:
    with versions.not_recording(timeout_s=RECORD_S):
        if workspace.holds_lock():  # else params.yaml holds the values of the run that this one waits for
            with suppress(OSError):  # then the next run does it
                run_params.restore()
        saying = threading.Thread(target=_say_how, args=(run,), daemon=True)
        saying.start()
        saying.join(SAY_S)
        os._exit(EXIT_STATUS)


def _say_how(run: UUID) -> None:
    """Bring a run, its stages, and the runs that it started, into the state that they are left in."""
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(run).state
        cancelled = found is not None and found.is_cancelling()
        ended: State[None] = (
            Cancelled(message="The run was cancelled.")
            if cancelled
            else Crashed(message="Its process was told to end; the worker was stopped.")
        )
        started = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]))
        for each in client.read_flow_runs(flow_run_filter=started):
            if each.state and not each.state.is_final():
                client.set_flow_run_state(each.id, Cancelling(message="The run that started it has ended."))
        for task in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run]))):
            if task.state and not task.state.is_final():
                client.set_task_run_state(task.id, ended, force=True)
        client.set_flow_run_state(run, ended, force=True)
    run_coro_as_sync(APILogHandler.aflush())


def stoppable(reporter: progress.Reporter) -> progress.Reporter:
    """Make every report of progress a place where a loop can end."""

    @contextmanager
    def reports(what: str, total: int, unit: str) -> Iterator[progress.Advance]:
        with reporter(what, total, unit) as advance:

            def advance_or_leave(n: int, **counts: int) -> None:
                cancellation.check()
                advance(n, **counts)

            yield advance_or_leave

    return reports
