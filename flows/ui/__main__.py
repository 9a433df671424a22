"""Start the Prefect UI on this machine: a server, one worker per work pool, and all deployments of prefect.yaml.

    make ui                     # http://127.0.0.1:4200, until Ctrl-C
    make ui PORT=4300
    eval "$(python -m flows.ui --env)"    # for another terminal, e.g. for `prefect deployment run`

Anybody who can start a run can run code, so the server requires a secret: a new one at each start, contained in the
printed address, or the value of PREFECT_SERVER_API_AUTH_STRING. The database is under .rootstock/ unless
PREFECT_SERVER_DATABASE_CONNECTION_URL names another. docs/deployment.md covers several machines.
"""

import argparse
import json
import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from urllib.request import urlopen

from filelock import FileLock, Timeout

from flows.ui import processes, reports
from flows.ui.address import HOST, Address, check_free, environment
from flows.ui.processes import Child
from rootstock.system.entry_points import entry_point
from rootstock.system.errors import RootstockError
from tasks.bridge import connection, workspace
from tasks.bridge.connection import API_SECRET, API_URL, SERVER_SECRET, UI, UI_LOCK, UI_SETTINGS
from tasks.bridge.workspace import LOCAL

INBOX = "inbox"
HELPERS = ("worker-cpu", "worker-gpu", INBOX)
START_S, CANCEL_S = 120, 15
LOCK_WAIT_S = 2  # another run may hold the lock briefly to check whether the UI is running
CLIENT_SETTINGS = (API_URL, API_SECRET, workspace.REPORTS_URL, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY",
          "PREFECT_LOGGING_TO_API_BATCH_INTERVAL")  # fmt: skip  # what runs outside the UI need
WATCHED = (workspace.PARAMS, Path("prefect.yaml"), Path("automations.yaml"))


@contextmanager
def only_one() -> Iterator[None]:
    """Hold the lock of this workspace's UI.

    Raises:
        RootstockError: it is already running.
    """
    LOCAL.mkdir(exist_ok=True)
    lock = FileLock(UI_LOCK, timeout=LOCK_WAIT_S)
    try:
        lock.acquire()
    except Timeout:
        where = connection.of_ui().get(API_URL, "it is starting").removesuffix("/api")
        raise RootstockError(f"The UI of this workspace is already running: {where}") from None
    UI_SETTINGS.unlink(missing_ok=True)  # left by a killed one
    try:
        yield
    finally:
        lock.release()


def start_server(address: Address, env: Mapping[str, str]) -> Child:
    """Start the server and wait until it answers.

    Raises:
        RootstockError: it ended, or did not answer in time.
    """
    command = ["flows.ui.server", "--host", HOST, "--port", str(address.port)]
    server = processes.start("server", command, env, UI)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.has_ended:
            home = env["PREFECT_HOME"]
            raise RootstockError(
                f"The Prefect server did not start (log: {server.log}; its files are in {home}, which needs space and "
                f"must be writable by this user):\n{server.last_error()}"
            )
        try:
            with urlopen(f"{address.api}/health", timeout=2):  # noqa: S310  our own address
                return server
        except OSError:
            time.sleep(0.2)
    processes.stop(server)
    raise RootstockError(f"The Prefect server did not answer within {START_S} s; see {server.log}")


def start_helper(name: str, env: Mapping[str, str]) -> Child:
    """Start the inbox watcher or a worker.

    A worker takes one run at a time: a workspace has one writer, a GPU one training.
    """
    if name == INBOX:
        return processes.start(name, ["flows.ui.inbox"], env, UI)
    pool = name.removeprefix("worker-")
    command = ["prefect", "worker", "start", "--pool", pool, "--name", f"{pool}-here", "--limit", "1"]
    return processes.start(name, command, env, UI)


def deploy(env: Mapping[str, str], *options: str) -> None:
    """Update the deployments, or only their forms with --forms, from the current flows.

    Raises:
        RootstockError: prefect.yaml or params.yaml is invalid.
    """
    deploying = processes.start("deploy", ["flows.ui.deploy", *options], env, UI)
    try:
        if deploying.process.wait():
            raise RootstockError(deploying.last_error())
        if notes := [line for line in deploying.last_error().splitlines() if line.startswith("The work pool ")]:
            print("\n".join(notes), flush=True)
    finally:
        processes.stop(deploying)


def watch(server: Child, helpers: list[Child], env: Mapping[str, str]) -> None:
    """Restart helpers that end, and update the forms when params.yaml changes, until a signal arrives.

    Raises:
        RootstockError: the server ended.
    """
    seen = _modified()
    while True:
        time.sleep(1)
        if server.has_ended:
            raise RootstockError(f"The Prefect server ended; see {server.log}:\n{server.last_error()}")
        for index, helper in enumerate(helpers):
            if helper.has_ended:
                print(f"{helper.name} ended and is restarted; see {helper.log}")
                helpers[index] = start_helper(helper.name, env)
        if (now := _modified()) != seen:
            seen = now
            try:
                deploy(env, "--forms")
            except RootstockError as error:
                print(f"The forms were not updated: {error}")


def _modified() -> list[float]:
    return [path.stat().st_mtime for path in WATCHED if path.exists()]


def end_runs(address: Address, env: Mapping[str, str], state: str, message: str) -> None:
    """Set the state of all running deployment runs, and wait until they have ended."""
    os.environ.update(env)  # Prefect reads its settings on import
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import State, StateType

    active = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    wanted = filters.FlowRunFilter(
        state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=active)),
        deployment_id=filters.FlowRunFilterDeploymentId(is_null_=False),
    )
    asked = set()
    deadline = time.monotonic() + CANCEL_S
    with SyncPrefectClient(address.api, auth_string=env[API_SECRET]) as client:
        while (runs := client.read_flow_runs(flow_run_filter=wanted)) and time.monotonic() < deadline:
            for run in runs:
                if run.id not in asked:
                    client.set_flow_run_state(run.id, State(type=StateType[state], message=message), force=True)
                    asked.add(run.id)
            time.sleep(0.5)


def cancel_runs(server: Child, address: Address, env: Mapping[str, str]) -> None:
    """Cancel active runs, unless the server has died."""
    if not server.has_ended:
        end_runs(address, env, "CANCELLING", "The UI is being stopped.")


def serve(address: Address) -> None:
    """Start everything, print the address, and stop everything on a signal."""
    secret_is_set = bool(os.environ.get(SERVER_SECRET))
    helpers: list[Child] = []
    with ExitStack() as running:
        running.enter_context(only_one())
        if processes.stop_left_behind(UI):
            print("Stopped processes that a killed UI had left behind")
        for port in (address.port, address.port + 1):
            check_free(port)
        address = replace(address, reports_key=reports.key_of(UI))
        env = environment(address)
        running.enter_context(reports.serving(HOST, address.port + 1, workspace.REPORTS, address.reports_key))
        print(f"Starting the Prefect server (the first start takes half a minute; log in {UI})", flush=True)
        server = start_server(address, env)
        running.callback(processes.stop, server)
        end_runs(address, env, "CRASHED", "The UI was killed, and this run with it.")
        deploy(env)
        running.callback(lambda: processes.stop(*helpers))
        running.callback(cancel_runs, server, address, env)
        helpers += [start_helper(name, env) for name in HELPERS]
        connection.write_private(UI_SETTINGS, json.dumps({name: env[name] for name in CLIENT_SETTINGS}))
        running.callback(UI_SETTINGS.unlink, missing_ok=True)  # first of all: no new clients
        if secret_is_set:  # known to whoever set it; keep it out of terminals and logs
            print(f"{address.ui}  (requires {SERVER_SECRET}; Ctrl-C stops it)", flush=True)
        else:
            print(f"{address.entrance(env[API_SECRET])}  (for you only; Ctrl-C stops it)", flush=True)
        watch(server, helpers, env)


def exports() -> str:
    """Return the shell commands that connect a terminal to the UI.

    Raises:
        RootstockError: the UI is not running.
    """
    if not (found := connection.of_ui()):
        raise RootstockError("The UI of this workspace is not running; start it: make ui")
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in found.items())


def main() -> None:
    """Serve until a signal; an error is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description="Start the Prefect UI, its workers and deployments on this machine.")
    parser.add_argument("--port", type=int, default=os.environ.get("PREFECT_SERVER_API_PORT", "4200"))
    parser.add_argument(
        "--env", action="store_true", help="print the shell commands that connect a terminal to the running UI"
    )
    asked = parser.parse_args()
    address = Address(asked.port)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def asked_to_stop(number: int, frame: FrameType | None) -> None:
        for each in signals:  # a second Ctrl-C would leave processes behind
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, asked_to_stop)
    with entry_point("ui"):
        try:
            if asked.env:
                print(exports())
            else:
                serve(address)
        except KeyboardInterrupt:
            print("Stopped.")


if __name__ == "__main__":
    main()
