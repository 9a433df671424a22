"""Two runs in one workspace, by whichever doors: one at a time, the later waits and says so, none harms the other."""

import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from tests.flows.test_two_doors import ONLY_A_LOOK
from tests.workspace import Workspace

FLOW = (sys.executable, "-m", "flows.pipeline")
REPRO = ("dvc", "repro")
STAGE = (sys.executable, "-m", "tasks.ingest")
UNAWARE = (sys.executable, "-m", "dvc", "repro")  # DVC without anything of ours before it


def start(workspace: Workspace, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=workspace.root, env=workspace.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@contextmanager
def busy(workspace: Workspace, with_what: str, seconds: float):
    """Have another process hold something for a while."""
    code = f"import time\n{with_what}:\n    print('held', flush=True); time.sleep({seconds})"
    with start(workspace, sys.executable, "-c", code) as other:
        assert other.stdout.readline() == "held\n"
        yield


TURN = "from tasks.workspace import writing\nwith writing()"
DVC_LOCK = "import zc.lockfile, contextlib\nwith contextlib.closing(zc.lockfile.LockFile('.dvc/tmp/lock'))"


@pytest.mark.parametrize(("first", "second"), [(REPRO, FLOW), (FLOW, REPRO)], ids=["repro, flow", "flow, repro"])
def test_a_flow_and_a_repro_at_once_both_end_well_and_the_later_waits(after_flow, first, second):
    after_flow.set(head={"l2": [3.0, 0.2]})
    one = start(after_flow, *first)
    writer = after_flow.root / ".rootstock" / "writer"
    while not writer.exists():
        assert one.poll() is None
        time.sleep(0.05)
    two = start(after_flow, *second)
    said, waited = one.communicate()[0], two.communicate()[0]
    assert (one.returncode, two.returncode) == (0, 0), said + waited
    assert "Another run is writing" in waited
    assert "goes on when that has ended" in waited
    assert "Traceback" not in said + waited
    assert after_flow.status() == ONLY_A_LOOK


@pytest.mark.parametrize("command", [REPRO, STAGE, ("dvc", "checkout"), ("dvc", "exp", "run", "-n", "x")], ids=" ".join)
def test_what_writes_in_the_workspace_waits_for_the_run_that_does(after_flow, command):
    with busy(after_flow, TURN, 4):
        done = after_flow.run(*command)
    assert "Another run is writing" in done.stderr
    assert after_flow.status() == ONLY_A_LOOK


@pytest.mark.parametrize(
    "command", [("status",), ("add", "notes.txt"), ("exp", "show"), ("push",), ("repro",)], ids=" ".join
)
def test_a_dvc_command_waits_until_dvcs_lock_is_free_longer_than_dvc_itself_does(after_flow, command):
    (after_flow.root / "notes.txt").write_text("mine\n")
    after_flow.run("dvc", "remote", "add", "--default", "shelf", str(after_flow.root.parent / "shelf"))
    with busy(after_flow, DVC_LOCK, 6):
        done = after_flow.run("dvc", *command)
    assert done.returncode == 0
    assert command == ("exp", "show") or "DVC's lock is held by process" in done.stderr


def test_a_flow_waits_for_a_dvc_command_at_every_call_and_says_for_which(after_flow):
    code = "from tasks import versions; print(versions.stale('ingest'))"
    with busy(after_flow, DVC_LOCK, 5):
        done = after_flow.run("python", "-c", code)
    assert done.stdout == "['always changed']\n"
    assert "DVC's lock is held by process" in done.stderr
    reserved = '{"write": {"%s": {"pid": %d, "cmd": "dvc repro --mine"}}, "read": {}}'
    with start(after_flow, "sleep", "5") as other:
        path = after_flow.root / "data" / "head"
        (after_flow.root / ".dvc" / "tmp" / "rwlock").write_text(reserved % (path, other.pid))
        done = after_flow.run("python", "-c", "from tasks import versions; versions.commit('train_head')")
    assert f"used by process {other.pid} (dvc repro --mine)" in done.stderr


def test_waiting_ends_in_a_sentence(after_flow):
    code = "from tasks import versions, mending; mending.DVC_WAIT_S = 1.0\n"
    code += "try: versions.stale('ingest')\nexcept versions.RootstockError as error: print(error)"
    with busy(after_flow, DVC_LOCK, 8):
        said = after_flow.run("python", "-c", code).stdout
    assert "DVC's lock is held by process" in said
    assert "end it, and run again" in said


def test_a_repro_that_knows_of_no_turns_is_refused_and_harms_no_flow(after_flow):
    after_flow.set(head={"l2": [3.0, 0.2]})
    flow, refused = start(after_flow, *FLOW), []
    while not (after_flow.root / ".rootstock" / "writer").exists():
        assert flow.poll() is None
        time.sleep(0.05)
    while flow.poll() is None:
        refused.append(after_flow.run(*UNAWARE, check=False))
    assert flow.returncode == 0, flow.stdout.read()
    assert any("Another run is writing" in done.stderr for done in refused)
    assert after_flow.status() == ONLY_A_LOOK


def test_two_repros_at_once_run_one_after_the_other(after_flow):
    after_flow.set(head={"l2": [3.0, 0.2]})
    both = [start(after_flow, *REPRO) for _ in range(2)]
    said = [each.communicate()[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert sum("Another run is writing" in each for each in said) == 1
    assert after_flow.status() == ONLY_A_LOOK


def test_a_stage_of_a_run_has_its_turn_and_what_outlives_the_run_has_not(after_flow):
    of_a_run = "import subprocess, sys\nfrom tasks.workspace import writing\nwith writing():\n"
    of_a_run += "    sys.exit(subprocess.run([sys.executable, '-m', 'tasks.ingest']).returncode)"
    assert after_flow.run("python", "-c", of_a_run).returncode == 0
    with busy(after_flow, TURN, 5):
        done = after_flow.run(*STAGE, DVC_STAGE="ingest", ROOTSTOCK_TURN="999999", check=False)
    assert done.returncode == 1
    assert "Another run is writing" in done.stderr
