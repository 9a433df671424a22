"""Two runs in one workspace, of flows or `dvc repro`: the later one waits, and neither harms the other."""

import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from tests.flows.test_repro_and_flow import UP_TO_DATE
from tests.serving import until
from tests.slow import slow
from tests.workspace import Workspace

FLOW = (sys.executable, "-m", "flows.pipeline")
REPRO = ("dvc", "repro")
STAGE = (sys.executable, "-m", "tasks.ingest")
DVC_GIVES_UP_S = 3.5
UNAWARE = (sys.executable, "-m", "dvc", "repro")  # DVC without anything of ours before it


def start(workspace: Workspace, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=workspace.root, env=workspace.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@contextmanager
def busy(workspace: Workspace, with_what: str):
    """Let another process hold something while the block lasts."""
    code = f"import sys\n{with_what}:\n    print('held', flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=workspace.root, env=workspace.env, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        try:
            yield other
        finally:
            other.communicate("\n")


TURN = "from tasks.bridge.workspace import writing\nwith writing()"
DVC_LOCK = "import zc.lockfile, contextlib\nwith contextlib.closing(zc.lockfile.LockFile('.dvc/tmp/lock'))"


def read_until(process: subprocess.Popen, said: str) -> str:
    """Read what a process prints up to some words."""
    lines = []
    while said not in (line := process.stdout.readline()):
        assert line, "".join(lines)
        lines.append(line)
    return "".join([*lines, line])


def until_it_waits(workspace: Workspace, command: tuple[str, ...], said: str, with_what: str) -> str:
    """Start a command that has to wait for what another process holds until then; returns what it said.

    DVC's own lock is held for longer than DVC itself would wait.
    """
    with busy(workspace, with_what):
        waiting = start(workspace, *command)
        before = read_until(waiting, said)
        time.sleep(DVC_GIVES_UP_S if with_what == DVC_LOCK else 0)
    after = waiting.communicate()[0]
    assert waiting.returncode == 0, before + after
    return before + after


@pytest.mark.parametrize(
    ("first", "second"),
    [pytest.param(REPRO, FLOW, id="repro, flow"), pytest.param(FLOW, REPRO, id="flow, repro")],
)
@pytest.mark.slow
def test_a_flow_and_a_repro_at_once_both_succeed_and_the_later_one_waits(after_flow, first, second):
    after_flow.set(evaluate={"mistakes": 11})
    one = start(after_flow, *first)
    until((after_flow.root / ".rootstock" / "writer").exists, "that it has its turn")
    two = start(after_flow, *second)
    said, waited = one.communicate()[0], two.communicate()[0]
    assert (one.returncode, two.returncode) == (0, 0), said + waited
    assert "Another run is writing" in waited
    assert "continues when that has ended" in waited
    assert "Traceback" not in said + waited
    assert after_flow.status() == UP_TO_DATE


@pytest.mark.parametrize(
    "command", [REPRO, STAGE, *slow(("dvc", "checkout"), ("dvc", "exp", "run", "-n", "x"))], ids=" ".join
)
def test_a_command_that_writes_in_the_workspace_waits_for_the_current_run(after_flow, command):
    until_it_waits(after_flow, command, "Another run is writing", TURN)
    assert after_flow.status() == UP_TO_DATE


@pytest.mark.parametrize("command", [("repro",), *slow(("status",), ("add", "notes.txt"), ("push",))], ids=" ".join)
def test_a_dvc_command_waits_for_dvcs_lock_longer_than_dvc_itself_would(after_flow, command):
    (after_flow.root / "notes.txt").write_text("mine\n")
    after_flow.run("dvc", "remote", "add", "--default", "shelf", str(after_flow.root.parent / "shelf"))
    until_it_waits(after_flow, ("dvc", *command), "DVC's lock is held by process", DVC_LOCK)


def test_a_flow_waits_for_a_running_dvc_command_and_names_it(after_flow):
    code = "from tasks.bridge import versions; print(versions.stale('ingest'))"
    said = until_it_waits(after_flow, ("python", "-c", code), "DVC's lock is held by process", DVC_LOCK)
    assert said.endswith("['always changed']\n")
    reserved = '{"write": {"%s": {"pid": %d, "cmd": "dvc repro --mine"}}, "read": {}}'
    with busy(after_flow, "import contextlib\nwith contextlib.nullcontext()") as other:
        path = after_flow.root / "data" / "head"
        (after_flow.root / ".dvc" / "tmp" / "rwlock").write_text(reserved % (path, other.pid))
        waiting = start(after_flow, "python", "-c", "from tasks.bridge import versions; versions.commit('train_head')")
        read_until(waiting, f"in use by process {other.pid} (dvc repro --mine)")
    waiting.communicate()
    assert waiting.returncode == 0


def test_waiting_too_long_ends_with_an_error_that_names_the_process(after_flow):
    code = "from tasks.bridge import dvc_lock, versions; dvc_lock.DVC_WAIT_S = 1.0\n"
    code += "try: versions.stale('ingest')\nexcept versions.RootstockError as error: print(error)"
    with busy(after_flow, DVC_LOCK):
        said = after_flow.run("python", "-c", code).stdout
    assert "DVC's lock is held by process" in said
    assert "end it, and run again" in said


@pytest.mark.slow
def test_a_repro_started_around_our_wrapper_is_refused_and_harms_no_flow(after_flow):
    after_flow.set(evaluate={"mistakes": 11})
    flow, refused = start(after_flow, *FLOW), []
    until((after_flow.root / ".rootstock" / "writer").exists, "that the flow has its turn")
    while flow.poll() is None:
        refused.append(after_flow.run(*UNAWARE, check=False))
    assert flow.returncode == 0, flow.stdout.read()
    assert any("Another run is writing" in done.stderr for done in refused)
    assert after_flow.status() == UP_TO_DATE


@pytest.mark.slow
def test_two_repros_at_once_run_one_after_the_other(after_flow):
    after_flow.set(evaluate={"mistakes": 11})
    both = [start(after_flow, *REPRO) for _ in range(2)]
    said = [each.communicate()[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert sum("Another run is writing" in each for each in said) == 1
    assert after_flow.status() == UP_TO_DATE


def test_a_stage_shares_the_turn_of_its_run_but_not_after_the_run_has_ended(after_flow):
    of_a_run = "import subprocess, sys\nfrom tasks.bridge.workspace import writing\nwith writing():\n"
    of_a_run += "    sys.exit(subprocess.run([sys.executable, '-m', 'tasks.ingest']).returncode)"
    assert after_flow.run("python", "-c", of_a_run).returncode == 0
    with busy(after_flow, TURN):
        done = after_flow.run(*STAGE, DVC_STAGE="ingest", ROOTSTOCK_TURN="999999", check=False)
    assert done.returncode == 1
    assert "Another run is writing" in done.stderr
