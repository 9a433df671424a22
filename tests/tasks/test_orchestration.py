"""What a task of a flow logs, in which state it ends, and how a run waits for another run or for DVC."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import zc.lockfile
from dvc.lock import make_lock

from rootstock.system import progress
from rootstock.system.errors import RootstockError
from tasks.bridge import cancellation, dvc_lock, orchestration, reporting
from tests.flows.test_concurrent_runs import DVC_LOCK, busy
from tests.serving import until


class Run(logging.Logger):
    """The log of a run, kept."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.said: list[str] = []

    def log(self, level: int, message: object, *args: object, **more: object) -> None:
        self.said.append(str(message) % args)


@pytest.fixture
def runs(monkeypatch) -> dict[int, Run]:
    """The log of each thread's run; the flow's is that of the main thread."""
    found = {}
    for module in (orchestration, reporting):
        monkeypatch.setattr(
            module, "get_run_logger", lambda: found.setdefault(threading.get_ident(), Run(str(len(found))))
        )
    return found


def in_a_thread(work) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_messages_of_a_task_are_logged_once_in_its_own_run_and_those_of_helper_threads_in_the_flows(runs, caplog):
    log, own = logging.getLogger("tasks.bridge.dvc_lock"), {}

    @orchestration.reported_task
    def task() -> None:
        own["run"] = orchestration.get_run_logger()
        log.warning("DVC's lock is held by %s", "another")
        in_a_thread(lambda: log.warning("from a helper")).join()

    with reporting.logging_to(reporting.get_run_logger()) as _:
        log.info("of the flow")
        in_a_thread(task).join()
        log.info("of the flow, after it")
        assert not log.parent.propagate  # else Prefect shows it a second time
    assert own["run"].said == ["DVC's lock is held by another"]
    assert runs[threading.get_ident()].said == ["of the flow", "from a helper", "of the flow, after it"]
    caplog.clear()
    log.warning("of no run")
    assert caplog.messages == ["of no run"]


@pytest.mark.parametrize(
    ("ends_it", "state"), [(RootstockError("it failed"), "Failed"), (cancellation.Stopped("cancelled"), "Cancelled")]
)
def test_a_task_ends_in_a_state_with_the_message_of_what_ended_it(runs, ends_it, state):
    @orchestration.reported_task
    def task() -> None:
        raise ends_it

    ended = task()
    assert (ended.name, ended.message) == (state, str(ends_it))


def test_every_task_can_be_cancelled_where_it_reports_progress(runs):
    @orchestration.reported_task
    def task() -> None:
        with progress.bar("compare", 3) as advance:
            cancellation.ask()
            advance(1)

    try:
        assert task().name == "Cancelled"
    finally:
        cancellation.forget()


def test_a_wait_for_dvc_ends_at_once_when_the_run_is_cancelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dvc_lock.TMP.mkdir(parents=True)
    said, ended = [], []

    def wait() -> None:
        try:
            dvc_lock.acquire(make_lock(str(dvc_lock.HELD)), said.append)
        except cancellation.Stopped:
            ended.append(time.monotonic())

    with contextlib.closing(zc.lockfile.LockFile(str(dvc_lock.HELD))):
        waiting = in_a_thread(wait)
        until(lambda: said, "that it waits")
        asked = time.monotonic()
        cancellation.ask()
        waiting.join()
    cancellation.forget()
    assert f"DVC's lock is held by process {os.getpid()}" in said[0]
    assert ended[0] - asked < 1


def test_a_run_cancelled_while_waiting_undoes_nothing_of_the_run_that_it_waits_for(workspace):
    given = "from tasks.bridge import run_params as run\nwith run.writing(str), run.in_params_file({'seed': %d}, str)"
    end = "import uuid; from tasks.bridge import termination; termination._report_state = lambda run: None; "
    end += "termination._end_process(uuid.uuid4())"
    path = workspace.root / "params.yaml"
    before = path.read_text()
    with busy(workspace, given % 7):
        with_seven = path.read_text()
        assert with_seven != before
        assert workspace.run(sys.executable, "-c", end, check=False).returncode == 128 + signal.SIGTERM
        assert path.read_text() == with_seven
    cancelled_in_its_turn = f"{given % 8}:\n    {end}"
    assert workspace.run(sys.executable, "-c", cancelled_in_its_turn, check=False).returncode == 128 + signal.SIGTERM
    assert path.read_text() == with_seven


@pytest.mark.slow
def test_ctrl_c_ends_a_run_that_waits_for_dvc_within_seconds(after_flow):
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline", "--verbose"], cwd=after_flow.root, env=after_flow.env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert "Starting temporary server" in flow.stdout.readline()
    with busy(after_flow, DVC_LOCK):
        while "DVC's lock is held" not in flow.stdout.readline():
            assert flow.poll() is None
        asked = time.monotonic()
        os.killpg(flow.pid, signal.SIGINT)  # as a terminal does: all that is in the foreground hears of it
        said = flow.communicate()[0]
        assert time.monotonic() - asked < 10
    assert "pipeline: stopped" in said
    assert "Traceback" not in said
