"""A model served on a free port of loopback, in this process, and what a client asks of it."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from rootstock.model.serving import connections, served, server
from rootstock.model.serving.limits import Limits
from rootstock.model.serving.served import Find, Served
from rootstock.model.serving.server import Running
from rootstock.model.serving.settings import Settings
from rootstock.system.parallel import cores
from tests.serving import until

Files = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Site:
    """A server that runs."""

    port: int
    running: Running
    client: httpx.Client
    asking: ThreadPoolExecutor

    def predict(self, files: Files, **headers: str) -> httpx.Response:
        """Upload images by a form."""
        return self.client.post("/predict", files=[("images", file) for file in files], headers=headers)

    def ask(self, files: Files) -> "Future[httpx.Response]":
        """Upload images without waiting for the answer."""
        return self.asking.submit(self.predict, files)

    def metric(self, name: str) -> float:
        """Read a metric; 0 if nothing of its kind has happened."""
        lines = self.client.get("/metrics").text.splitlines()
        return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")), 0))

    def waits_for(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        until(lambda: self.metric(name) == value, f"{name} {value:g}", 20)


@contextmanager
def serving(model: Path | Find, limits: Limits | None = None, **settings: Any) -> Iterator[Site]:
    """Serve the model of a folder, or that which a function finds."""
    asked = replace(Settings(port=0, follow_s=0.05, **settings), limits=limits or Limits())
    find = partial(served.in_folder, model) if isinstance(model, Path) else model
    with (
        connections.listening("127.0.0.1", 0) as listener,
        server.ready(find, asked) as running,
        ThreadPoolExecutor(16) as asking,
    ):
        thread = threading.Thread(target=running.server.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: running.server.started, "a server that listens", 20)
        port = listener.getsockname()[1]
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield Site(port, running, client, asking)
        finally:
            running.server.should_exit = True
            thread.join(30)


@dataclass(frozen=True)
class Held:
    """An engine that computes nothing before it is released; `images` counts those that reach it."""

    site: Site
    released: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(self.batches)

    def occupy(self, files: Files) -> "list[Future[httpx.Response]]":
        """Let every thread compute an image; returns their answers to come."""
        asked = []
        for thread in range(cores()):
            asked.append(self.site.ask(files[thread : thread + 1]))
            until(lambda count=thread + 1: len(self.batches) == count, "an image that is computed", 20)
        return asked

    def hold(self, model: Served) -> Served:
        """Return the model with this engine before its own."""
        own = model.extractor.engine.forward

        def forward(images: Any) -> Any:
            self.batches.append(len(images))
            assert self.released.wait(60)
            return own(images)

        extractor = replace(model.extractor, engine=replace(model.extractor.engine, forward=forward))
        return replace(model, extractor=extractor, extractor_of_batches=extractor)


@contextmanager
def held(site: Site) -> Iterator[Held]:
    """Hold what the server computes from now on; it goes on when the block ends."""
    own, holding = site.running.follower.current, Held(site)
    site.running.follower.current = holding.hold(own)
    try:
        yield holding
    finally:
        holding.released.set()
        site.running.follower.current = own
