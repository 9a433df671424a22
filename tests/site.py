"""A web site on loopback that serves files, as unreliably as a test wants."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What it has, how it behaves, and what it was asked for.

    `breaks` are numbers of bytes after which the next connections break off, `failures` what the next requests are
    answered with instead; without `ranges`, it always begins at the beginning.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    breaks: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)  # of every answer, beside its length
    asked: list[tuple[str, int, int]] = field(default_factory=list)  # name, first byte, status
    sent: list[dict[str, str]] = field(default_factory=list)  # headers of each request

    def answer(self, name: str, first: int) -> tuple[int, bytes]:
        """Decide on status and content."""
        content = self.files.get(name)
        first = first if self.ranges else 0
        if self.failures:
            status, body = self.failures.pop(0), b""
        elif content is None:
            status, body = 404, b""
        elif first and first >= len(content):
            status, body = 416, b""
        else:
            status, body = (206 if first else 200), content[first:]
        self.asked.append((name, first, status))
        return status, body


@contextmanager
def site(**files: bytes) -> Iterator[Site]:
    """Open a site."""
    opened = Site(files=dict(files))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            opened.sent.append(dict(self.headers))
            wanted = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
            status, body = opened.answer(self.path.lstrip("/"), int(wanted))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **opened.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: opened.breaks.pop(0) if opened.breaks and body else len(body)])

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        opened.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield opened
        server.shutdown()
