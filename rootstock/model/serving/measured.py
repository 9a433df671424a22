"""What a server measures of itself, for Prometheus: requests, images, batches, and which model answers."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rootstock.model.model import Prediction

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PATHS = ("/predict", "/healthz", "/metrics", "/docs", "/openapi.json")
GONE = 499  # the client left before the answer; nginx's status


class Metrics:
    """Counters, gauges and histograms in a registry of their own."""

    def __init__(self) -> None:
        self.registry = one = CollectorRegistry()
        ProcessCollector(registry=one)  # memory, CPU time, open files
        self.requests = Counter("rootstock_requests", "Requests, by path and status", ["path", "status"], registry=one)
        self.seconds = Histogram(
            "rootstock_request_seconds", "Time from the request to its answer", ["path"], registry=one, buckets=SECONDS
        )
        self.images = Counter("rootstock_images", "Images: classified, unknown, rejected", ["outcome"], registry=one)
        self.batches = Histogram("rootstock_batch_images", "Images computed together", registry=one, buckets=IMAGES)
        self.waiting = Gauge("rootstock_waiting_images", "Images that wait to be decoded or computed", registry=one)
        self.uploads = Gauge("rootstock_upload_bytes", "Bytes of uploads in memory", registry=one)
        self.model = Gauge("rootstock_model", "The model that answers, as a label", ["model"], registry=one)
        self.changes = Counter("rootstock_model_changes", "Models, or new names of them, so far", registry=one)
        self.failing = Gauge(
            "rootstock_reload_failing", "1 while a newer model cannot be served and an old one answers", registry=one
        )

    def show_model(self, name: str) -> None:
        """Show which model answers from now on."""
        self.model.clear()
        self.model.labels(name).set(1)
        self.changes.inc()

    def count(self, predictions: Iterable[Prediction]) -> None:
        """Count the images of an answer."""
        for one in predictions:
            self.images.labels("rejected" if one.reason else "unknown" if one.unknown else "classified").inc()


def measured(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """Count an application's requests and measure how long they take; other paths than PATHS count as `other`."""

    async def measure(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        status, begin = 500, time.perf_counter()

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, send_and_note)
        finally:
            metrics.requests.labels(path, status).inc()
            metrics.seconds.labels(path).observe(time.perf_counter() - begin)

    return measure
