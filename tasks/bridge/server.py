"""Guard Prefect's server: it answers only requests to its own name, and none from pages of other sites.

Any page in a browser of this machine may send requests to a server on loopback. The browser decides what the page may
read (CORS); the server has to check the name it was called by: a site whose name suddenly resolves to 127.0.0.1 (DNS
rebinding) is the same origin to a browser, but `Host` still has its name. Every request needs the secret, too. Further
host names and origins come from PREFECT_SERVER_CORS_ALLOWED_ORIGINS.

On SQLite, write transactions queue. Prefect begins every transaction as a reader; if another one has written in
between, SQLite refuses its first write at once, whatever the timeout (SQLITE_BUSY_SNAPSHOT,
https://www.sqlite.org/rescode.html), and the page shows "Unknown error while creating flow run": this happened to 3 of
40 runs that were started during another one. Transactions that begin as writers wait instead. PostgreSQL needs none of
this, and its configuration is another class.
"""

import base64
import hashlib
from contextlib import AbstractAsyncContextManager
from urllib.parse import urlsplit

from prefect.server.api import server
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.settings import PREFECT_SERVER_CORS_ALLOWED_ORIGINS
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.bridge.connection import LOOPBACK

ALIAS = "localhost"  # of LOOPBACK
ENTRANCE = "/enter"  # followed by # and the secret, which browsers never send
# Store the secret where Prefect's pages look for it, unless it is wrong.
KEEP = """
const secret = btoa(decodeURIComponent(location.hash.slice(1)));
fetch("/api/admin/version", {headers: {Authorization: `Basic ${secret}`}})
  .then(answer => { if (answer.ok) localStorage.setItem("prefect-password", secret); })
  .finally(() => location.replace("/"));
"""
KEEP_DIGEST = base64.b64encode(hashlib.sha256(KEEP.encode()).digest()).decode()
PAGE = f'<!doctype html><html lang="en"><title>Rootstock</title><script>{KEEP}</script></html>'
PAGE_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src 'sha256-{KEEP_DIGEST}'; connect-src 'self'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
# No other site may show our pages in a frame, or load our files as pictures or scripts.
EVERYWHERE = {
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
begin = AioSqliteConfiguration.begin_transaction


class OriginGuard:
    """Refuse requests of other sites, websockets included, and serve the entrance page that stores the secret."""

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        self.app = app
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or open a websocket."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self._answer(scope, headers)
        await (answer or self.app)(scope, receive, _with_headers(send))

    def _answer(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        host = headers.get("host", "").lower()
        own = {f"http://{host}", f"https://{host}"}  # the latter behind a TLS proxy
        if not self.origins | own >= {origin.lower() for origin in headers.getlist("origin")}:
            return PlainTextResponse("This server does not answer pages of other sites.", status_code=403)
        if scope["type"] == "websocket" or scope["method"] != "GET":
            return None
        if host.partition(":")[0] == ALIAS and "text/html" in headers.get("accept", ""):
            # The page calls the API by this name only.
            query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
            return RedirectResponse(f"http://{LOOPBACK}{host[len(ALIAS) :]}{scope['path']}{query}")
        if scope["path"] == ENTRANCE:
            return HTMLResponse(PAGE, headers=PAGE_HEADERS)
        return None


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in EVERYWHERE.items():
                headers.setdefault(name, value)
        await send(message)

    return sending


def create_app() -> ASGIApp:
    """Create the app that uvicorn serves."""
    return guarded(server.create_app())


def guarded(app: ASGIApp) -> ASGIApp:
    """Guard Prefect's app; its own services still call it directly."""
    AioSqliteConfiguration.begin_transaction = _begin_as_writer  # type: ignore[assignment,method-assign]
    named = PREFECT_SERVER_CORS_ALLOWED_ORIGINS.value().split(",")
    origins = frozenset(origin.strip().lower() for origin in named) - {"*"}
    names = {LOOPBACK, ALIAS, *(urlsplit(origin).hostname or LOOPBACK for origin in origins)}
    return TrustedHostMiddleware(OriginGuard(app, origins), sorted(names), www_redirect=False)


def _begin_as_writer(
    self: AioSqliteConfiguration, session: AsyncSession, with_for_update: bool = False
) -> AbstractAsyncContextManager[AsyncSessionTransaction]:
    """Begin a transaction as a writer, waiting for other writers."""
    return begin(self, session, with_for_update=True)
