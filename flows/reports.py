"""The reports of all runs over HTTP, so that the UI can link to them: from a web page no browser opens a local file.

A report is one page without scripts or other files, so a folder served as it is does.
"""

import base64
import hmac
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, to those who know the Prefect server's secret if it has one."""

    def __init__(self, *args: Any, secret: str, **kwargs: Any) -> None:  # noqa: ANN401
        self.expected = f"Basic {base64.b64encode(secret.encode()).decode()}" if secret else ""
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        """Send a report, or ask who is asking."""
        if hmac.compare_digest(self.headers.get("Authorization", "") if self.expected else "", self.expected):
            super().do_GET()
            return
        self.send_response(HTTPStatus.UNAUTHORIZED)
        self.send_header("WWW-Authenticate", 'Basic realm="Rootstock reports"')
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401
        """Say nothing: the terminal is for what a person needs to know."""


@contextmanager
def serving(host: str, port: int, folder: Path) -> Iterator[None]:
    """Serve `folder` in the background, for as long as the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    secret = os.environ.get("PREFECT_SERVER_API_AUTH_STRING", "")
    server = ThreadingHTTPServer((host, port), partial(Handler, directory=str(folder), secret=secret))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
