"""Where the UI of this workspace is, and the environment that leads its processes there."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rootstock.system.errors import RootstockError
from tasks.bridge import connection, workspace
from tasks.bridge.connection import API_SECRET, API_URL, SERVER_SECRET
from tasks.bridge.workspace import LOCAL

HOST = "127.0.0.1"  # loopback: a run may read and write whatever the user of the server may
PORTS = 2**16


@dataclass(frozen=True)
class Address:
    """The address of the UI; reports are served on the next port, under a key."""

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
        """Address that logs a browser in: browsers never send what follows the #, and the page stores it."""
        return f"{self.ui}/enter#{quote(secret, safe=':')}"


def environment(address: Address) -> dict[str, str]:
    """Return the environment of server, workers and their runs; variables that are already set win.

    Raises:
        RootstockError: the secret that is set is not ASCII.
    """
    home = connection.private_folder(LOCAL.resolve() / "prefect")  # parameters, logs and pictures of all runs
    secret = os.environ.get(SERVER_SECRET) or connection.new_secret()
    if not secret.isascii():
        raise RootstockError(
            f"{SERVER_SECRET} contains non-ASCII characters, which Prefect cannot check; choose another one"
        )
    ours = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; automations.yaml relies on it
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # the server is local: poll often
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


def check_free(port: int) -> None:
    """Check that a loopback port is free.

    Raises:
        RootstockError: the port is taken, privileged or invalid.
    """
    another = "choose another: make ui PORT=4300"
    if not 0 < port < PORTS:
        raise RootstockError(f"Port {port} does not exist: ports range from 1 to {PORTS - 1}; {another}")
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port just released is free
        try:
            attempt.bind((HOST, port))
        except PermissionError:
            raise RootstockError(f"Port {port} is reserved for the system; {another}") from None
        except OSError:
            raise RootstockError(f"Port {port} is used by another program; {another}") from None
