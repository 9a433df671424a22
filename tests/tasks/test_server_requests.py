"""The guard of Prefect's server, request by request; tests/flows/test_server_access.py tests it in a running server."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tasks.bridge import server
from tests.slow import slow
from tests.workspace import ROOT, environment

IN, ORIGIN = 299, "http://127.0.0.1:4200"
OWN = ("127.0.0.1:4200", "127.0.0.1", "localhost:4200", "LOCALHOST:4200")
OTHERS = (
    "", " ", "null", "*", "//127.0.0.1:4200", "ftp://127.0.0.1:4200", "http://[::1", "http://[::1]:4200", "http://[v9.x]",
    "http://127.0.0.1:4200/", "http://127.0.0.1:4200#x", "http://127.0.0.1:4200.evil", "http://127.0.0.1:4200\\evil",
    "http://127.0.0.1:4200@evil.example", "http://evil.example@127.0.0.1:4200", "http://127.0.0.1:99999999999",
    "http://127.0.0.1:x", "http://\xe4", f"{ORIGIN}, http://evil.example", "chrome-extension://127.0.0.1:4200",
)  # fmt: skip
NAMES = (
    "", "localhost.", "127.0.0.1.", "127.0.0.1:", "127.1", "2130706433", "0x7f.1", "127.0.0.1:4200:x", "[::1", "\xe4",
    "127.0.0.1:4200@evil", "evil@127.0.0.1:4200", "[::ffff:127.0.0.1]:4200", "localhost:4200/evil", "localhost:x@evil",
)  # fmt: skip


@pytest.fixture
def guard(monkeypatch):
    """Guard an app that accepts all requests; returns status and headers of its answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        opened = {"type": "http.response.start", "status": IN, "headers": []}
        await send(opened if scope["type"] == "http" else {"type": "websocket.accept"})

    monkeypatch.setattr(server.AioSqliteConfiguration, "begin_transaction", server.begin)
    whole = server.guarded(app)

    def ask(*headers: tuple[str, str], kind: str = "http", path: str = "/api/x", query: bytes = b"") -> Any:
        sent: list[dict] = []

        async def send(message: dict) -> None:
            sent.append(message)

        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        scope = {"type": kind, "method": "GET", "path": path, "query_string": query, "headers": raw, "scheme": kind}
        asyncio.run(whole(scope, None, send))
        answered = {name.decode(): value.decode() for name, value in sent[0].get("headers", ())}
        return sent[0].get("status", IN), answered

    return ask


@pytest.mark.parametrize("origin", OTHERS)
def test_any_origin_but_the_servers_own_is_refused(guard, origin):
    for kind in ("http", "websocket"):
        for also in ([], [("origin", ORIGIN)]):
            assert guard(("host", OWN[0]), ("origin", origin), *also, kind=kind)[0] == 403
        assert guard(("host", OWN[0]), ("origin", ORIGIN), kind=kind)[0] == IN


@pytest.mark.parametrize("name", NAMES)
def test_any_host_name_but_the_servers_own_is_refused(guard, name):
    for also in ([], [("origin", f"http://{name}")], [("accept", "text/html")]):
        assert guard(("host", name), *also)[0] == 400


@pytest.mark.parametrize("name", OWN)
def test_requests_by_the_servers_own_names_from_its_own_pages_are_answered(guard, name):
    assert guard(("host", name))[0] == IN
    assert guard(("host", name), ("origin", f"http://{name}"))[0] == IN


@pytest.mark.parametrize("path", ["/", "//evil.example/x", "/a\r\nSet-Cookie: x", "/\\evil.example", "/@evil.example"])
def test_the_servers_other_name_redirects_to_its_own_address_and_nowhere_else(guard, path):
    status, headers = guard(("host", "localhost:4200"), ("accept", "text/html"), path=path, query=b"a=\xff\r\nb")
    assert status == 307
    assert headers["location"].startswith(f"{ORIGIN}/") and not {"\r", "\n"} & set(headers["location"])


@pytest.mark.parametrize("option", ["--background", *slow("-b", "--workers=2")])
def test_no_unguarded_server_is_started_instead(option, tmp_path):
    command = [sys.executable, "-m", "flows.ui.server", option]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"server: {option} is not supported")
