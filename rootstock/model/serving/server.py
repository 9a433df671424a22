"""Starts a server: its socket, its model, its threads; and an end that finishes what is under way."""

import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from rootstock.model.serving.app import application
from rootstock.model.serving.batching import Batcher
from rootstock.model.serving.connections import TimedProtocol
from rootstock.model.serving.measured import Metrics
from rootstock.model.serving.reloading import Follower
from rootstock.model.serving.served import Find
from rootstock.model.serving.settings import Settings
from rootstock.system.errors import RootstockError
from rootstock.system.parallel import cores

END_S = 15.0  # for requests under way when the server is stopped, beyond the time of an answer
FORMAT = "%(asctime)s %(levelname)s %(message)s"


@dataclass(frozen=True)
class Running:
    """A server that only has to run, and the model that it answers by."""

    server: uvicorn.Server
    follower: Follower


def serve(find: Find, settings: Settings, *, verbose: bool = False) -> None:
    """Serve a model until a signal (SIGTERM, SIGINT) arrives; what is under way then is answered first.

    Args:
        find: returns the model to serve, now and later.
        settings: where, to whom, within which limits.
        verbose: log each request.

    Raises:
        RootstockError: there is no model, or the address cannot be listened on.
    """
    logging.basicConfig(level=logging.INFO, format=FORMAT, stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.INFO if verbose else logging.WARNING)
    with listening(settings.host, settings.port) as listener, ready(find, settings, verbose=verbose) as running:
        # uvicorn raises the signal again when it has ended, which would kill this process instead of letting it end.
        signal.signal(signal.SIGTERM, lambda *_: setattr(running.server, "should_exit", True))
        model, where = running.follower.current, f"http://{_shown(listener)}"
        print(f"Serving {model.name} ({len(model.model.classes)} classes, {cores()} cores) at {where}")
        asks = "requests need the token" if settings.token else "no token is asked for"
        print(f"{where}/docs describes requests and answers; {asks}", flush=True)
        running.server.run(sockets=[listener])
        print("Stopped; what was under way has been answered", flush=True)


@contextmanager
def ready(find: Find, settings: Settings, *, verbose: bool = False) -> Iterator[Running]:
    """Load the model and start what predicts; when the block ends, images that still wait are predicted first.

    Raises:
        RootstockError: there is no model.
    """
    limits, metrics = settings.limits, Metrics()
    follower = Follower(find, limits.megapixels, lambda new: metrics.show_model(new.name))
    batcher = Batcher(limits.queue, limits.batch_wait_s, on_batch=metrics.batches.observe)
    app = application(
        follower, batcher, metrics, limits, settings.token, settings.top, for_loopback=settings.is_loopback
    )
    config = uvicorn.Config(
        app, http=TimedProtocol, ws="none", lifespan="off", log_config=None, access_log=verbose,
        limit_concurrency=limits.connections, timeout_graceful_shutdown=round(limits.answer_s + END_S),
        server_header=False, proxy_headers=False,
    )  # fmt: skip
    follower.follow(settings.follow_s)
    try:
        yield Running(uvicorn.Server(config), follower)
    finally:
        follower.end()
        batcher.close(limits.answer_s)


def listening(host: str, port: int) -> socket.socket:
    """Open a socket, before the model is loaded: an address in use is found out at once.

    Raises:
        RootstockError: the address is in use, or not of this machine.
    """
    try:
        [(family, *_, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RootstockError(
            f"The server cannot listen on {host}, port {port}: {why}. Expected an address of this machine and a port "
            "that is free: --host, --port."
        ) from error


def _shown(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
