"""Serve the reports of all runs over HTTP, so that the UI can link to them: browsers block links to local files.

A report is one page without other files, and shows the user's images. So its address contains a secret key, which the
workspace keeps, and pages of other sites can neither guess nor read it. Its script runs in a sandbox, with an origin of
its own and no network; the page itself allows no other script (rootstock/evaluation/report.py).
"""

import os
import re
import secrets
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tasks.bridge import connection

LOOPBACK = ("127.0.0.1", "localhost")
SUFFIX = ".html"
KEY_BYTES, KEY = 18, re.compile(r"[\w-]{24}", re.ASCII)
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
}


class Handler(BaseHTTPRequestHandler):
    """Serve the files of a folder by name, without subfolders, links or listings."""

    def __init__(self, *args: Any, folder: Path, key: str, **kwargs: Any) -> None:  # noqa: ANN401
        self.folder, self.key = folder, key
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        """Send a report if the request has its key and names this machine as host."""
        if (self.headers.get("Host") or "").lower().rpartition(":")[0] not in LOOPBACK:
            self.send_error(HTTPStatus.FORBIDDEN)
        elif (page := self._page()) is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self.send_response(HTTPStatus.OK)
            for name, value in {**HEADERS, "Content-Length": str(len(page))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                with suppress(ConnectionError):  # the tab was closed
                    self.wfile.write(page)

    do_HEAD = do_GET  # noqa: N815

    def _page(self) -> bytes | None:
        key, _, name = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        # Bytes, since compare_digest raises for non-ASCII strings.
        if not secrets.compare_digest(key.encode(), self.key.encode()) or not name.endswith(SUFFIX):
            return None
        if "/" in name or "\0" in name or name.startswith("."):
            return None
        return read_without_links(self.folder / name)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401
        """Log nothing, to keep the terminal clean."""


def read_without_links(path: Path) -> bytes | None:
    """Read a regular file; return None for a link, folder, pipe or missing file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def key_of(folder: Path) -> str:
    """Return the key of a workspace's reports, which is kept so that links stay valid."""
    path = connection.private_folder(folder) / "reports.key"
    key = path.read_text(errors="replace") if path.exists() else ""
    if not KEY.fullmatch(key):  # none yet, or emptied by a power cut
        key = secrets.token_urlsafe(KEY_BYTES)
        connection.write_private(path, key)
    return key


@contextmanager
def serving(host: str, port: int, folder: Path, key: str) -> Iterator[None]:
    """Serve `folder` in the background while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    server = ThreadingHTTPServer((host, port), partial(Handler, folder=folder.resolve(), key=key))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
