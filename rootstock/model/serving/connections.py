"""Connections: the socket that a server listens on, and an end for those that send no request.

uvicorn limits only how long a connection is idle between two requests.
"""

import asyncio
import os
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rootstock.system.errors import RootstockError

REQUEST_S = 10.0  # for the headers of a request to arrive, or the rest of a refused body
KEEP_ALIVE_S = 75  # of an idle connection: longer than proxies keep theirs, which then close it and lose no request
BACKLOG = 1024  # connections that wait to be accepted


def listening(host: str, port: int) -> socket.socket:
    """Open a socket, before the model is loaded: an address in use is found out at once.

    Raises:
        RootstockError: the address is in use, or not of this machine.
    """
    try:
        [(family, *_, place), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.create_server(place[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # the latter for what cannot be the name of a host
        number = error.errno if isinstance(error, OSError) else None
        named = error.strerror if isinstance(error, OSError) else "it is no name of a host"
        why = os.strerror(number) if number and number > 0 else named  # Python adds the address to it
        raise RootstockError(
            f"The server cannot listen on {host}, port {port}: {why}. Expected an address of this machine and a port "
            "that is free: --host, --port."
        ) from error
    # Connections inherit it. Else the body of an answer waits 40 ms for the client to acknowledge the headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address(listener: socket.socket) -> str:
    """Return the URL at which a socket listens."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class TimedProtocol(H11Protocol):
    """HTTP/1.1, on which a request has to arrive in time; of its body, uploads.py takes care."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request; uvicorn refuses those of too many connections, but keeps these open."""
        super().connection_made(transport)
        self._watch()
        if self.limit_concurrency and len(self.connections) > 2 * self.limit_concurrency:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a request that has begun."""
        super().data_received(data)
        if self._timer is None and not self._is_answering():
            self._watch()

    def handle_events(self) -> None:
        """Handle what has arrived; a request whose headers are complete is in time."""
        super().handle_events()
        if self._is_answering():
            self._unwatch()

    def on_response_complete(self) -> None:
        """Wait for the rest of a refused body, or of a request that has begun; uvicorn waits for the next one."""
        super().on_response_complete()
        has_begun = self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]
        if has_begun and not self._is_answering():
            self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, even within a body: to the application, the client is gone then."""
        if self._is_answering():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        self._unwatch()
        self._timer = self.loop.call_later(REQUEST_S, self.transport.close)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
