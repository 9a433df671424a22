"""Connections that send no request are closed: uvicorn limits only the time between two requests."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0  # for the headers of a request to arrive, from the connection or the answer before


class TimedProtocol(H11Protocol):
    """HTTP/1.1, on which a request that has begun has to arrive in time; of its body, uploads.py takes care."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._unwatch()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handle what has arrived; a request whose headers are complete is in time."""
        super().handle_events()
        if self._is_answering():
            self._unwatch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if not self._is_answering():
            self._watch()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        self._unwatch()
        self._timer = self.loop.call_later(REQUEST_S, self.transport.close)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
