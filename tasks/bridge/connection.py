"""Choose the Prefect server of a run: the configured one, else that of `make ui` in this workspace, else its own.

The temporary server that Prefect itself would start answers every page of every site without a password, and outlives a
killed run. Ours is guarded (tasks/bridge/server.py), has a secret, and ends with the run.
"""

import atexit
import json
import os
import secrets
import socket
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tasks.bridge import child_process
from tasks.bridge.workspace import LOCAL

LOOPBACK = "127.0.0.1"
UI_LOCK = LOCAL / "ui.lock"  # held while `make ui` is up
UI = LOCAL / "ui"  # its logs and settings
UI_SETTINGS = UI / "settings.json"  # what other programs need to connect; readable only by its owner
API_URL, API_SECRET, SERVER_SECRET = (
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_SERVER_API_AUTH_STRING",
)


def new_secret() -> str:
    """Return a random `name:password`, as Prefect and HTTP basic authentication expect it."""
    return f"rootstock:{secrets.token_urlsafe(24)}"


@cache
def _own_secret() -> str:
    """Return the secret of this process's temporary server, the same for all callers."""
    return new_secret()


def private_folder(folder: Path) -> Path:
    """Create a folder, or change one, so that only its owner may read it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def write_private(path: Path, text: str) -> None:
    """Write a file that other users can never read, not even while it is written."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def of_ui() -> dict[str, str]:
    """Return the settings that connect to this workspace's `make ui`; empty if it is not running.

    Settings that a killed one left behind do not count: it no longer holds the lock.
    """
    try:
        if UI_SETTINGS.exists():
            with FileLock(UI_LOCK, timeout=0):
                return {}
    except Timeout:
        return _settings()
    except OSError:  # another user's
        pass
    return {}


def _settings() -> dict[str, str]:
    try:
        found = json.loads(UI_SETTINGS.read_text())
    except (OSError, ValueError):  # another user's, or truncated by a full disk
        return {}
    is_valid = isinstance(found, dict) and API_URL in found and all(isinstance(value, str) for value in found.values())
    return found if is_valid else {}


def join_ui() -> None:
    """Report to `make ui`, if it is running in this workspace and no server is configured."""
    if os.environ.get(API_URL) or not (found := of_ui()):
        return
    import prefect.context  # takes a second, and reads its settings on import
    import prefect.settings

    if prefect.settings.PREFECT_API_URL.value():  # in a profile, in prefect.toml or .env
        return
    os.environ.update(found)
    prefect.context.GLOBAL_SETTINGS_CONTEXT = prefect.context.root_settings_context()


def guard_own_server() -> None:
    """If no server is configured, begin to start a guarded one, in place of the temporary one that Prefect would start.

    Both processes import for seconds: this one goes on meanwhile, and waits where its first run asks for the server.
    """
    from prefect.settings import PREFECT_API_URL, get_current_settings
    from pydantic import SecretStr

    if PREFECT_API_URL.value():
        return
    settings = get_current_settings()
    settings.api.auth_string = settings.server.api.auth_string = SecretStr(_own_secret())
    _first_server()
    from prefect.server.api.server import SubprocessASGIServer

    SubprocessASGIServer._run_uvicorn_command = _run_own_server  # type: ignore[assignment,method-assign]


@cache
def _first_server() -> tuple["subprocess.Popen[bytes]", int]:
    """Start the server of this process, which ends with it even if no run asks for it; return its port, too."""
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        port = taken.getsockname()[1]
    process = _start_server(port)
    atexit.register(process.terminate)
    return process, port


def _run_own_server(server: Any) -> "subprocess.Popen[bytes]":  # noqa: ANN401
    """Return the server that is starting already, or another one if that has ended: its port may have been taken."""
    process, port = _first_server()
    if process.poll() is None:
        server.port = port
        return process
    return _start_server(server.port)


def _start_server(port: int) -> "subprocess.Popen[bytes]":
    from prefect.settings import get_current_settings

    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    ours = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    where = ["--host", LOOPBACK, "--port", str(port), "--log-level", "error"]
    command = child_process.command("uvicorn", "--factory", "tasks.bridge.server:create_app", *where)
    # Ctrl-C must reach the run alone: it reports its final state to the server, and would wait minutes for an answer.
    return subprocess.Popen(command, env={**os.environ, **settings, **ours}, start_new_session=True)
