"""A real Prefect server on a free port of loopback, its workers, and what a person would do in the UI, by its API."""

import json
import os
import signal
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tasks.bridge import child_process
from tests.workspace import Workspace

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


def free_port() -> int:
    """Find a port that nobody listens on, with a free one after it."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Wait for something to become true, and give it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


@dataclass(frozen=True)
class Api:
    """A server's API: what the pages of the UI call."""

    url: str
    secret: str = ""

    @property
    def known(self) -> dict[str, str]:
        """Headers of a request from who knows the secret."""
        return {"Authorization": f"Basic {b64encode(self.secret.encode()).decode()}"} if self.secret else {}

    @property
    def env(self) -> dict[str, str]:
        """What a program needs to get in."""
        return {"PREFECT_API_URL": self.url} | ({"PREFECT_API_AUTH_STRING": self.secret} if self.secret else {})

    def ask(self, path: str, body: dict | None = None, method: str | None = None) -> Any:
        """Get a page of the API, or post to it."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self.known}
        asked = Request(f"{self.url}/{path}", data, headers, method=method)
        with urlopen(asked, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            with urlopen(f"{self.url}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def start(self, deployment: str = "pipeline/cpu", **parameters: Any) -> "Run":
        """Press Run."""
        found = self.ask(f"deployments/name/{deployment}")
        asked = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return Run(self, self.ask(f"deployments/{found['id']}/create_flow_run", asked)["id"])

    def run_of(self, act: Callable[[], Any]) -> "Run":
        """Do something that runs a flow, and give its run."""
        known = {run.id for run in self.runs()}
        act()
        [run] = [run for run in self.runs() if run.id not in known]
        return run

    def runs(self, **filters: Any) -> list["Run"]:
        """Return the flow runs that match, the latest first."""
        found = self.ask("flow_runs/filter", {"flow_runs": filters, "sort": "EXPECTED_START_TIME_DESC"})
        return [Run(self, run["id"]) for run in found]


@dataclass(frozen=True)
class Run:
    """A flow run, as its page shows it."""

    api: Api
    id: str

    def page(self) -> dict:
        """Return everything about it."""
        return self.api.ask(f"flow_runs/{self.id}")

    @property
    def state(self) -> str:
        """Name its state."""
        return self.page()["state"]["name"]

    def ended(self, seconds: float = 120) -> dict:
        """Wait for its last state."""
        until(lambda: self.page()["state"]["type"] in FINAL, f"the end of {self.page()['name']}", seconds)
        return self.page()["state"]

    def stages(self) -> dict[str, str]:
        """Return each task's state by its name."""
        runs = self.api.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [self.id]}}})
        return {run["name"].rpartition("-")[0] or run["name"]: (run["state"] or {}).get("name", "") for run in runs}

    def logs(self) -> list[str]:
        """Return its log lines, and its tasks'."""
        wanted = {"logs": {"flow_run_id": {"any_": [self.id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [line["message"] for line in self.api.ask("logs/filter", wanted)]

    def artifacts(self) -> dict[str, dict]:
        """Return its artifacts, and its tasks', by key."""
        found = self.api.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [self.id]}}})
        return {artifact["key"]: artifact for artifact in found}

    def subflows(self) -> list["Run"]:
        """Return the flow runs that this one started."""
        return self.api.runs(parent_flow_run_id={"any_": [self.id]})

    def cancel(self) -> None:
        """Press Cancel."""
        self.api.ask(f"flow_runs/{self.id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})


@contextmanager
def process(command: list[str], env: dict[str, str], cwd: Path | None = None, log: Path | None = None) -> Iterator[Any]:
    """Run a command beside the test, and stop it and its children at the end."""
    with (log or Path(os.devnull)).open("ab") as output:
        running = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield running
    finally:
        if running.poll() is None:
            running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


@contextmanager
def server(env: dict[str, str]) -> Iterator[Api]:
    """Boot a server."""
    port = free_port()
    api = Api(f"http://127.0.0.1:{port}/api")
    command = child_process.command("flows.ui.server", "--host", "127.0.0.1", "--port", str(port))
    with process(command, env) as running:

        def answers() -> bool:
            assert running.poll() is None, "the server did not start; see the constraints on fastapi and prefect"
            return api.is_up()

        until(answers, "a server that answers", 120)
        yield api


@contextmanager
def worker(api: Api, pool: str, workspace: Workspace, name: str = "", **env: str) -> Iterator[Any]:
    """Start a worker whose runs happen in a workspace, and wait until it is online."""
    name = name or f"{pool}-{workspace.root.parent.name}"
    settings = {
        "PREFECT_API_URL": api.url,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_PREFETCH_SECONDS": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "ROOTSTOCK_WORKSPACE": str(workspace.root),
    }
    command = child_process.command("prefect", "worker", "start", "--pool", pool, "--name", name, "--limit", "1")
    log = workspace.root.parent / f"worker-{name}.log"
    with process(command, workspace.env | settings | env, workspace.root, log) as running:

        def online() -> bool:
            assert running.poll() is None, log.read_text()
            workers = api.ask(f"work_pools/{pool}/workers/filter", {})
            return any(worker["name"] == name and worker["status"] == "ONLINE" for worker in workers)

        until(online, f"worker {name} online")
        yield running
    api.ask(f"work_pools/{pool}/workers/{name}", method="DELETE")  # else it counts as online for another 90 s


@dataclass(frozen=True)
class Bucket:
    """An empty S3 bucket: the address of its server, and what opens it."""

    url: str
    bucket: str
    credentials: dict[str, str]


@contextmanager
def bucket() -> Iterator[Bucket]:
    """Run an S3 server, with one bucket."""
    import boto3  # what a test may need and most do not
    from moto.server import ThreadedMotoServer

    s3_server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3_server.start()
    host, port = s3_server.get_host_and_port()
    url = f"http://{host}:{port}"
    secret = {"AWS_ACCESS_KEY_ID": "rootstock-test", "AWS_SECRET_ACCESS_KEY": "never-to-be-seen"}
    try:
        client = boto3.client(
            "s3", "us-east-1", endpoint_url=url,
            aws_access_key_id=secret["AWS_ACCESS_KEY_ID"], aws_secret_access_key=secret["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        client.create_bucket(Bucket="rootstock")
        yield Bucket(url, "rootstock", secret | {"AWS_DEFAULT_REGION": "us-east-1"})
    finally:
        s3_server.stop()
