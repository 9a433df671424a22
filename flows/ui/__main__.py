"""The Prefect UI on this machine: a server, a worker for each work pool, everything in prefect.yaml deployed.

    make ui                     # http://127.0.0.1:4200, until Ctrl-C
    make ui PORT=4300
    eval "$(python -m flows.ui --env)"    # lets a terminal in beside it, e.g. for `prefect deployment run`

Who may start a run may run code, so the server asks for a secret: a new one each time, which is in the address that is
printed, or what PREFECT_SERVER_API_AUTH_STRING says. The server's database is under .rootstock/ unless
PREFECT_SERVER_DATABASE_CONNECTION_URL names another. docs/deployment.md has the same on several machines.
"""

import argparse
import json
import os
import shlex
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from urllib.parse import quote
from urllib.request import urlopen

from filelock import FileLock, Timeout

from flows.ui import processes, reports
from flows.ui.processes import Child
from rootstock.system.entry_points import entry_point
from rootstock.system.errors import RootstockError
from tasks.bridge import connection, workspace
from tasks.bridge.connection import API_SECRET, API_URL, SERVER_SECRET, UI, UI_LOCK, UI_SETTINGS
from tasks.bridge.workspace import LOCAL

HOST = "127.0.0.1"  # loopback: who may start a run may read and write as the one who started the server
INBOX = "inbox"
HELPERS = ("worker-cpu", "worker-gpu", INBOX)
START_S, CANCEL_S = 120, 15
PORTS = 2**16
LOOK_S = 2  # for which a run beside may hold the lock, to see whether this is up
BESIDE = (API_URL, API_SECRET, workspace.REPORTS_URL, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY",
          "PREFECT_LOGGING_TO_API_BATCH_INTERVAL")  # fmt: skip  # what a run beside it needs
WATCHED = (workspace.PARAMS, Path("prefect.yaml"), Path("automations.yaml"))


@dataclass(frozen=True)
class Address:
    """Where the UI is; reports are served one port further, under a key."""

    port: int
    reports_key: str = ""

    @property
    def ui(self) -> str:
        """Address for a browser."""
        return f"http://{HOST}:{self.port}"

    @property
    def api(self) -> str:
        """Address for PREFECT_API_URL."""
        return f"{self.ui}/api"

    @property
    def reports(self) -> str:
        """Address under which each run's report is."""
        return f"http://{HOST}:{self.port + 1}/{self.reports_key}"

    def entrance(self, secret: str) -> str:
        """Address that lets a browser in: it sends nowhere what stands behind the #, and the page keeps it."""
        return f"{self.ui}/enter#{quote(secret, safe=':')}"


def environment(address: Address) -> dict[str, str]:
    """Give server, workers and their runs what they need to find each other; what is set already wins.

    Raises:
        RootstockError: the secret that is set is none that Prefect can compare.
    """
    home = connection.private_folder(LOCAL.resolve() / "prefect")  # parameters, logs and pictures of all runs
    secret = os.environ.get(SERVER_SECRET) or connection.new_secret()
    if not secret.isascii():
        raise RootstockError(f"{SERVER_SECRET} is not plain ASCII, and Prefect lets nobody in with such a one")
    ours = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; automations.yaml counts on it
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # the server is next door: ask often, start soon
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "1.0",  # seconds: a person is watching
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address.ui,  # Prefect's default is every site
    }
    found = {
        API_URL: address.api,
        API_SECRET: secret,
        SERVER_SECRET: secret,
        "PREFECT_SERVER_UI_API_URL": address.api,  # else the page calls port 4200
        "PREFECT_UI_URL": address.ui,  # for links in notifications
        workspace.ROOT: str(Path.cwd()),
        workspace.REPORTS_URL: address.reports,
    }
    return ours | os.environ | found


@contextmanager
def only_one() -> Iterator[None]:
    """Hold this workspace's UI.

    Raises:
        RootstockError: it is up already.
    """
    LOCAL.mkdir(exist_ok=True)
    lock = FileLock(UI_LOCK, timeout=LOOK_S)
    try:
        lock.acquire()
    except Timeout:
        where = connection.of_ui().get(API_URL, "it is starting").removesuffix("/api")
        raise RootstockError(f"The UI of this workspace is up already: {where}") from None
    UI_SETTINGS.unlink(missing_ok=True)  # a killed one's
    try:
        yield
    finally:
        lock.release()


def check_free(port: int) -> None:
    """Check that nobody listens on a port of loopback.

    Raises:
        RootstockError: somebody does, or this user may not, or there is no such port.
    """
    another = "name another: make ui PORT=4300"
    if not 0 < port < PORTS:
        raise RootstockError(f"There is no port {port}: they go from 1 to {PORTS - 1}; {another}")
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port just left is free
        try:
            attempt.bind((HOST, port))
        except PermissionError:
            raise RootstockError(f"Port {port} is for the system's own programs; {another}") from None
        except OSError:
            raise RootstockError(f"Port {port} is taken by another program; {another}") from None


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
                f"The Prefect server did not start (log: {server.log}; its files are in {home}, which needs space, and "
                f"to be writable by this user):\n{server.last_words()}"
            )
        try:
            with urlopen(f"{address.api}/health", timeout=2):  # noqa: S310  our own address
                return server
        except OSError:
            time.sleep(0.2)
    processes.stop(server)
    raise RootstockError(f"The Prefect server did not answer within {START_S} s; see {server.log}")


def start_helper(name: str, env: Mapping[str, str]) -> Child:
    """Start what works for the server: who looks into the inbox, or a worker.

    A worker takes one run at a time: a workspace has one writer, a GPU one training.
    """
    if name == INBOX:
        return processes.start(name, ["flows.ui.inbox"], env, UI)
    pool = name.removeprefix("worker-")
    command = ["prefect", "worker", "start", "--pool", pool, "--name", f"{pool}-here", "--limit", "1"]
    return processes.start(name, command, env, UI)


def deploy(env: Mapping[str, str], *options: str) -> None:
    """Bring deployments, or with --forms their forms alone, up to date; the flows are read anew.

    Raises:
        RootstockError: prefect.yaml or params.yaml is at fault.
    """
    deploying = processes.start("deploy", ["flows.ui.deploy", *options], env, UI)
    try:
        if deploying.process.wait():
            raise RootstockError(deploying.last_words())
        if told := [line for line in deploying.last_words().splitlines() if line.startswith("The work pool ")]:
            print("\n".join(told), flush=True)
    finally:
        processes.stop(deploying)


def watch(server: Child, helpers: list[Child], env: Mapping[str, str]) -> None:
    """Keep helpers up, and forms as params.yaml is, until the server ends or a signal comes.

    Raises:
        RootstockError: the server ended by itself.
    """
    seen = _edited()
    while True:
        time.sleep(1)
        if server.has_ended:
            raise RootstockError(f"The Prefect server ended; see {server.log}:\n{server.last_words()}")
        for index, helper in enumerate(helpers):
            if helper.has_ended:
                print(f"{helper.name} ended, and is started again; see {helper.log}")
                helpers[index] = start_helper(helper.name, env)
        if (now := _edited()) != seen:
            seen = now
            try:
                deploy(env, "--forms")
            except RootstockError as error:
                print(f"The forms stay as they were: {error}")


def _edited() -> list[float]:
    return [path.stat().st_mtime for path in WATCHED if path.exists()]


def end_runs(address: Address, env: Mapping[str, str], state: str, message: str) -> None:
    """Bring the runs of deployments that are under way into another state, and wait until they have ended."""
    os.environ.update(env)  # Prefect reads its settings when it is imported
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import State, StateType

    under_way = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    wanted = filters.FlowRunFilter(
        state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=under_way)),
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
    """Cancel what is under way; where the server has died, there is nobody to tell."""
    if not server.has_ended:
        end_runs(address, env, "CANCELLING", "The UI is being stopped.")


def serve(address: Address) -> None:
    """Start everything, say where it is, and stop everything when asked to."""
    secret_is_theirs = bool(os.environ.get(SERVER_SECRET))
    helpers: list[Child] = []
    with ExitStack() as running:
        running.enter_context(only_one())
        if processes.stop_left_behind(UI):
            print("Stopped what an earlier UI, which was killed, had left behind")
        for port in (address.port, address.port + 1):
            check_free(port)
        address = replace(address, reports_key=reports.key_of(UI))
        env = environment(address)
        running.enter_context(reports.serving(HOST, address.port + 1, workspace.REPORTS, address.reports_key))
        print(f"Starting the Prefect server (its first start takes half a minute; log in {UI})", flush=True)
        server = start_server(address, env)
        running.callback(processes.stop, server)
        end_runs(address, env, "CRASHED", "The UI was killed, and this run with it.")
        deploy(env)
        running.callback(lambda: processes.stop(*helpers))
        running.callback(cancel_runs, server, address, env)
        helpers += [start_helper(name, env) for name in HELPERS]
        connection.write_private(UI_SETTINGS, json.dumps({name: env[name] for name in BESIDE}))
        running.callback(UI_SETTINGS.unlink, missing_ok=True)  # before all else: nobody new is to come
        if secret_is_theirs:  # whoever has set it knows it, and it is not for a terminal or a log
            print(f"{address.ui}  (asks for {SERVER_SECRET}; Ctrl-C stops it)", flush=True)
        else:
            print(f"{address.entrance(env[API_SECRET])}  (for you alone; Ctrl-C stops it)", flush=True)
        watch(server, helpers, env)


def exports() -> str:
    """Give what a shell evaluates to get in beside the UI.

    Raises:
        RootstockError: it is not up.
    """
    if not (found := connection.of_ui()):
        raise RootstockError("The UI of this workspace is not up; start it: make ui")
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in found.items())


def main() -> None:
    """Serve until a signal; an error is one sentence, and exit status 1."""
    parser = argparse.ArgumentParser(description="Start the Prefect UI, its workers and deployments on this machine.")
    parser.add_argument("--port", type=int, default=os.environ.get("PREFECT_SERVER_API_PORT", "4200"))
    parser.add_argument("--env", action="store_true", help="print what lets a shell in beside the one that is up")
    asked = parser.parse_args()
    address = Address(asked.port)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def asked_to_stop(number: int, frame: FrameType | None) -> None:
        for each in signals:  # once is enough: a second Ctrl-C would leave behind what is being stopped
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
