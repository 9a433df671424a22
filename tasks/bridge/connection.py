"""On which Prefect server a run is seen: the one that is named, else that of `make ui` in this workspace, else its own.

What Prefect would start for a run without a server answers every page of every site, is asked for nothing, and outlives
a run that is killed. Ours has a door (tasks/bridge/server.py), a secret, and ends with the run.
"""

import json
import os
import secrets
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tasks.bridge import child_process
from tasks.bridge.workspace import LOCAL

UI_LOCK = LOCAL / "ui.lock"  # held while `make ui` is up
UI = LOCAL / "ui"  # its logs, and
UI_SETTINGS = UI / "settings.json"  # what a program beside it needs to get in: for nobody else's eyes
API_URL, API_SECRET, SERVER_SECRET = (
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_SERVER_API_AUTH_STRING",
)


def new_secret() -> str:
    """Make a name and a password that nobody can guess, as Prefect and HTTP take them."""
    return f"rootstock:{secrets.token_urlsafe(24)}"


@cache
def _own_secret() -> str:
    """Make the secret of this process's server: whatever in it comes to need the server, there is one."""
    return new_secret()


def private_folder(folder: Path) -> Path:
    """Make a folder, or close one, to other users of this machine."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def write_private(path: Path, text: str) -> None:
    """Put a file in its place that was at no moment another user's to read."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def of_ui() -> dict[str, str]:
    """Give what leads to the server of this workspace's `make ui`; nothing where it is not up.

    What a killed one left behind counts for nothing: it holds no lock any more.
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
    except (OSError, ValueError):  # another user's, or cut off by a full disk: as if it was not there
        return {}
    is_ours = isinstance(found, dict) and API_URL in found and all(isinstance(value, str) for value in found.values())
    return found if is_ours else {}


def join_ui() -> None:
    """Let what this process runs be seen in `make ui`, if that is up here and nobody has named a server."""
    if os.environ.get(API_URL) or not (found := of_ui()):
        return
    import prefect.context  # a second, and its settings are read as they are now
    import prefect.settings

    if prefect.settings.PREFECT_API_URL.value():  # in a profile, in prefect.toml or .env
        return
    os.environ.update(found)
    prefect.context.GLOBAL_SETTINGS_CONTEXT = prefect.context.root_settings_context()


def guard_own_server() -> None:
    """Where no server is named: have the one that Prefect starts for this process be ours."""
    from prefect.settings import PREFECT_API_URL, get_current_settings
    from pydantic import SecretStr

    if PREFECT_API_URL.value():
        return
    from prefect.server.api.server import SubprocessASGIServer

    settings = get_current_settings()
    settings.api.auth_string = settings.server.api.auth_string = SecretStr(_own_secret())
    SubprocessASGIServer._run_uvicorn_command = _start_own_server  # type: ignore[assignment,method-assign]


def _start_own_server(server: Any) -> "subprocess.Popen[bytes]":  # noqa: ANN401
    from prefect.settings import get_current_settings

    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    ours = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    where = ["--host", "127.0.0.1", "--port", str(server.port), "--log-level", "error"]
    command = child_process.command("uvicorn", "--factory", "tasks.bridge.server:create_app", *where)
    # Of Ctrl-C the run alone is to hear: it asks its server how it has ended, and would wait minutes for an answer.
    return subprocess.Popen(command, env={**os.environ, **settings, **ours}, start_new_session=True)
