"""A Hugging Face Hub on loopback, to which a folder can be uploaded."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """Its address, and what was uploaded to each repository, by path."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)


@contextmanager
def hub() -> Iterator[Hub]:
    """Open a hub; every file is sent within the commit, as small ones are."""
    opened = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            *_, user, name, action, _ = ["", "", *self.path.split("?")[0].split("/")]
            repository = f"{user}/{name}"
            if self.path.startswith("/api/repos/create"):
                asked = json.loads(body)
                repository = f"{asked.get('organization') or 'me'}/{asked['name'].rpartition('/')[2]}"
                opened.repositories[repository] = {}
                self.answer({"url": f"{opened.address}/{repository}"})
            elif action == "preupload":
                paths = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
                self.answer({"files": modes})
            elif action == "commit":
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        opened.repositories[repository][line["value"]["path"]] = content
                self.answer({"commitUrl": f"{opened.address}/{repository}/commit/1", "commitOid": "1"})
            else:  # api/validate-yaml
                self.answer({"errors": [], "warnings": []})

        def answer(self, content: dict[str, object]) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    opened.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield opened
    finally:
        server.shutdown()
        server.server_close()
