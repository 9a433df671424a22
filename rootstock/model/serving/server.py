"""Starts a server: its socket, its model, its threads; and an end that finishes what is under way."""

import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from rootstock.model.serving import connections
from rootstock.model.serving.app import Parts, application
from rootstock.model.serving.batching import Batcher
from rootstock.model.serving.measured import Metrics
from rootstock.model.serving.reloading import Follower
from rootstock.model.serving.served import Find
from rootstock.model.serving.settings import Settings
from rootstock.system.parallel import cores

END_S = 15.0  # for requests under way when the server is stopped, beyond the time of an answer
FORMAT = "%(asctime)s %(levelname)s %(message)s"


@dataclass(frozen=True)
class Running:
    """A server that only has to run, and the model that it answers by."""

    server: uvicorn.Server
    follower: Follower


def serve(find: Find, listener: socket.socket, settings: Settings, *, verbose: bool = False) -> None:
    """Serve a model until a signal (SIGTERM, SIGINT) arrives; what is under way then is answered first.

    Args:
        find: returns the model to serve, now and later.
        listener: listens on the address; see `connections.listening`.
        settings: to whom, within which limits.
        verbose: log each request.

    Raises:
        RootstockError: there is no model.
    """
    logging.basicConfig(level=logging.INFO, format=FORMAT, stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.INFO if verbose else logging.ERROR)  # it warns of what clients do
    with ready(find, settings, verbose=verbose) as running:
        # uvicorn raises the signal again when it has ended, which would kill this process instead of letting it end.
        signal.signal(signal.SIGTERM, lambda *_: setattr(running.server, "should_exit", True))
        model, where = running.follower.current, connections.address(listener)
        print(f"Serving {model.name} ({len(model.model.classes)} classes, {cores()} cores) at {where}")
        asks = "requests need the token" if settings.token else "no token is asked for"
        print(f"{where}/docs describes requests and responses; {asks}", flush=True)
        running.server.run(sockets=[listener])
        print("Stopped; pending requests were completed", flush=True)


@contextmanager
def ready(find: Find, settings: Settings, *, verbose: bool = False) -> Iterator[Running]:
    """Load the model and start what predicts; when the block ends, images that still wait are predicted first.

    Raises:
        RootstockError: there is no model.
    """
    limits, metrics = settings.limits, Metrics()
    follower = Follower(find, limits.megapixels, lambda new: metrics.show_model(new.name))
    batcher = Batcher(limits.queue, limits.batch_wait_s, on_batch=metrics.batches.observe)
    parts = Parts(follower, batcher, metrics, limits, settings.top)
    app = application(parts, settings.token, for_loopback=settings.is_loopback)
    config = uvicorn.Config(
        app, http=connections.TimedProtocol, ws="none", lifespan="off", log_config=None, access_log=verbose,
        limit_concurrency=limits.connections + 1, timeout_graceful_shutdown=round(limits.answer_s + END_S),
        timeout_keep_alive=connections.KEEP_ALIVE_S, server_header=False, proxy_headers=False,
    )  # fmt: skip
    follower.follow(settings.follow_s)
    try:
        yield Running(uvicorn.Server(config), follower)
    finally:
        batcher.close(limits.answer_s)
        follower.end(END_S)
