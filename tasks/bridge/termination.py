"""End a run at once when it is cancelled, or when its worker is stopped.

A process may exit at any moment: every file is written elsewhere and renamed, so only unfinished work is lost. So a
worker's process reports its final state and exits. Prefect's worker checks for it every three seconds, and then starts
a process for the flow's hooks before it reports the run as cancelled, which is too slow on a busy machine. On a
terminal, the threads of the stages stop at their next image.
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
from rootstock.system.errors import RootstockError
from tasks.bridge import cancellation, dvc_repository, git, run_params, workspace
from tasks.bridge.git import GitError

RECORD_S, REPORT_S = 1.0, 4.0  # together less than the six seconds after which a worker checks a second time
EXIT_STATUS = 128 + signal.SIGTERM


@contextmanager
def when_cancelled() -> Iterator[None]:
    """Stop the threads of a flow when the flow is cancelled."""
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
    """On SIGTERM, exit from a thread: the main thread may be in a long transfer, which Prefect would wait for."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Thread(target=_end_process, args=(UUID(run),)).start()

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_process(run: UUID) -> None:
    with dvc_repository.not_recording(timeout_s=RECORD_S):
        if workspace.holds_lock():  # else params.yaml holds the values of another run
            with suppress(OSError, RootstockError):  # the next run will do it
                run_params.restore(unless=_committed_params())
        reporting = threading.Thread(target=_report_state, args=(run,), daemon=True)
        reporting.start()
        reporting.join(REPORT_S)
        os._exit(EXIT_STATUS)


def _committed_params() -> bytes | None:
    """Return params.yaml if it is as in the last commit, which a promotion may just have made."""
    with suppress(GitError, OSError, ValueError):
        text = workspace.PARAMS.read_bytes()
        if git.blobs(["HEAD"], workspace.PARAMS) == [git.blob_of(text.decode())]:
            return text
    return None


def _report_state(run: UUID) -> None:
    """Set the final state of a run and its stages, and cancel the runs that it started."""
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(run).state
        cancelled = found is not None and found.is_cancelling()
        ended: State[None] = (
            Cancelled(message="The run was cancelled.")
            if cancelled
            else Crashed(message="Its process was terminated: the worker was stopped.")
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
    """Check for cancellation at every progress report."""

    @contextmanager
    def reporter_with_check(what: str, total: int, unit: str) -> Iterator[progress.Advance]:
        with reporter(what, total, unit) as advance:

            def advance_or_stop(n: int, *, skip: int = 0, **counts: int) -> None:
                cancellation.check()
                advance(n, skip=skip, **counts)

            yield advance_or_stop

    return reporter_with_check
