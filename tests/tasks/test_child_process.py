"""Temporary servers and workers' runs end with the process that started them, even if it is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.serving import until
from tests.slow import slow
from tests.workspace import ROOT, environment

# A process that starts a watched one, which starts one of its own that obeys no SIGTERM.
STARTED = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(600)
"""
WATCHED = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {STARTED!r}], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""
STARTS = """
import signal, subprocess, sys, threading, time
from tasks.bridge import child_process
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background inherit an ignored one
def start():  # of a thread that ends: the kernel's own signal would come then
    global process
    command = child_process.command("watched_by_the_test")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
thread = threading.Thread(target=start)
thread.start()
thread.join()
print(process.pid, int(process.stdout.readline()), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, *slow(signal.SIGTERM, signal.SIGINT)])
def test_child_processes_end_with_their_parent_however_it_ends(tmp_path, how):
    (tmp_path / "watched_by_the_test.py").write_text(WATCHED)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    with subprocess.Popen([sys.executable, "-c", STARTS], env=env, stdout=subprocess.PIPE) as process:
        family = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        time.sleep(1.5)  # a few checks: a child does not end while its parent lives
        assert all(one.is_running() for one in family)
        process.send_signal(how)
    until(lambda: not [one for one in family if alive(one)], "their end", 20)


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


# Each starts a server for itself, as a flow without one does.
FLOW = """
import sys
import flows
from tasks.bridge import connection
connection.guard_own_server()
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING
@flow
def running():
    connection.guard_own_server()  # once more, as a stage that fans out does
    with get_client(sync_client=True) as client:
        client.read_flow_runs(limit=1)
        print(client.api_url, PREFECT_API_AUTH_STRING.value(), flush=True)
    sys.stdin.read()
running()
"""


@pytest.mark.slow
def test_the_temporary_server_of_a_run_requires_a_secret_and_ends_with_a_killed_run(prefect_home, tmp_path):
    from tests.flows.test_server_access import ask

    log = tmp_path / "log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            [sys.executable, "-c", FLOW], env=environment(prefect_home), cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=said, text=True,
        ) as process,
    ):  # fmt: skip
        line = process.stdout.readline()
        assert line, log.read_text()
        url, secret = line.split()
        port = int(url.split(":")[2].partition("/")[0])
        known = {"Content_Type": "application/json", "Authorization": basic(secret)}
        assert ask(port, "POST", "/api/flow_runs/filter", "{}")[0] == 401
        assert ask(port, "POST", "/api/flow_runs/filter", "{}", **known)[0] == 200
        assert ask(port, "POST", "/api/flow_runs/filter", "{}", Origin="http://evil.example", **known)[0] == 403
        assert ask(port, "POST", "/api/flow_runs/filter", "{}", Host="evil.example", **known)[0] == 400
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        assert not [one for one in family if secret in " ".join(one.cmdline())]
        process.kill()
    until(lambda: not [one for one in family if alive(one)], "the server's end", 20)


def test_the_temporary_server_ends_with_a_process_that_asked_nothing_of_it(prefect_home):
    look = (
        "import psutil\nfrom tasks.bridge import connection\nconnection.guard_own_server()\n"
        "connection.guard_own_server()\nprint(*(child.pid for child in psutil.Process().children()))"
    )
    command = [sys.executable, "-c", look]
    done = subprocess.run(command, env=environment(prefect_home), cwd=ROOT, capture_output=True, text=True, check=True)
    (server,) = map(int, done.stdout.split())  # one, however often it is asked for
    until(lambda: not psutil.pid_exists(server), "the server's end", 20)
    assert done.stderr == ""


def basic(secret: str) -> str:
    from base64 import b64encode

    return f"Basic {b64encode(secret.encode()).decode()}"


def test_settings_of_a_configured_server_are_left_as_they_are(prefect_home):
    look = (
        "from tasks.bridge import connection\nconnection.guard_own_server()\n"
        "from prefect.settings import PREFECT_API_AUTH_STRING\nprint(PREFECT_API_AUTH_STRING.value())"
    )
    named = environment(prefect_home) | {"PREFECT_API_URL": "http://127.0.0.1:1/api", "PREFECT_API_AUTH_STRING": "a:b"}
    done = subprocess.run([sys.executable, "-c", look], env=named, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "a:b"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give up the right to read everything")
def test_the_ui_of_another_user_is_not_used(tmp_path):
    folder = tmp_path / ".rootstock" / "ui"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text('{"PREFECT_API_URL": "http://127.0.0.1:1/api"}')
    folder.chmod(0)
    drop = "-dac_override,-dac_read_search"
    command = ("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", sys.executable, "-c")
    look = "from tasks.bridge import connection\nprint(connection.of_ui())"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, look], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{}"


def test_a_settings_file_whose_ui_does_not_run_is_ignored(tmp_path):
    folder = tmp_path / ".rootstock" / "ui"
    folder.mkdir(parents=True)
    settings = folder / "settings.json"
    settings.write_text('{"PREFECT_API_URL": "http://127.0.0.1:1/api"}')
    look = "from tasks.bridge import connection\nprint(connection.of_ui())"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def found() -> str:
        return subprocess.run(
            [sys.executable, "-c", look], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert found() == "{}"
    hold = (
        "import fcntl, sys\nf = open('.rootstock/ui.lock', 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\n"
        "print(flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        assert "http://127.0.0.1:1/api" in found()
        for damaged in ("", "{", "[]", "7", '{"PREFECT_API_URL": 3}'):
            settings.write_text(damaged)
            assert found() == "{}"
        settings.unlink()
        Path(settings).mkdir()
        assert found() == "{}"
        holder.kill()
    assert found() == "{}"
