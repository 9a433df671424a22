"""A real MLflow server on a free port of loopback, with its database and artifacts in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tasks.bridge import child_process
from tests.serving import free_port, process, until


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run `mlflow server` and yield its address."""
    port, log = free_port(), folder / "server.log"
    command = child_process.command(
        "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    no_more = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with process(command, os.environ | no_more, log=log) as running:
        until(lambda: answers(running, f"{url}/health", log), f"MLflow's server answers; see {log}", 120)
        yield url


def answers(running: Any, url: str, log: Path) -> bool:
    """Whether a server that was started answers; it must not have ended."""
    assert running.poll() is None, log.read_text()
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
