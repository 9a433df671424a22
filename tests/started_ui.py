"""The UI of a workspace, started as `make ui` does."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.serving import Api, free_port
from tests.workspace import Workspace


@dataclass(frozen=True)
class Ui:
    """A started UI."""

    process: "subprocess.Popen[str]"
    workspace: Workspace
    api: Api
    port: int
    printed: str


@contextmanager
def started(workspace: Workspace, **env: str) -> Iterator[Ui]:
    """Start the UI as `make ui` does, and wait until it prints its address."""
    port = free_port()
    without_home = {name: value for name, value in workspace.env.items() if name != "PREFECT_HOME"}
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.ui", "--port", str(port)], cwd=workspace.root, env=without_home | env,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        printed = ""
        while "Ctrl-C stops it" not in printed:
            line = process.stdout.readline()
            assert line, f"{printed}\n{process.wait()}"
            printed += line
        beside = json.loads((workspace.root / ".rootstock" / "ui" / "settings.json").read_text())
        api = Api(f"http://127.0.0.1:{port}/api", beside["PREFECT_API_AUTH_STRING"])
        yield Ui(process, workspace, api, port, printed)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


def workers(ui: Ui, pool: str) -> list[str]:
    return [worker["name"] for worker in ui.api.ask(f"work_pools/{pool}/workers/filter", {})]
