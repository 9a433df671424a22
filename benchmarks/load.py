"""Clients of a server, for locust: each uploads an image at a time, at a rate or as fast as it is answered.

benchmarks/serve.py starts this. A request is named after the status of its answer, 0 for a broken connection.
"""

import itertools
import random
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, constant_throughput, events, task


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:  # noqa: ANN401  locust's
    """Add the options of this file to locust's."""
    parser.add_argument("--images", help="folder of the images to upload")
    parser.add_argument("--rate", type=float, default=0, help="requests/s of all users together; 0 for all they can")


@events.test_start.add_listener
def read_images(environment: Any, **_: object) -> None:  # noqa: ANN401
    """Read the images once, for all users."""
    paths = sorted(Path(environment.parsed_options.images).rglob("*.jpg"))
    environment.images = itertools.cycle([path.read_bytes() for path in paths])


def pause(user: FastHttpUser) -> float:
    """Return how long a user waits before its next request."""
    options = user.environment.parsed_options
    return float(constant_throughput(options.rate / options.num_users)(user)) if options.rate else 0.0


class Client(FastHttpUser):
    """A client that keeps its connection."""

    wait_time = pause
    network_timeout = 60.0

    def on_start(self) -> None:
        """Begin at a random moment: else all clients ask at once, again and again."""
        options = self.environment.parsed_options
        gevent.sleep(random.uniform(0, options.num_users / options.rate) if options.rate else 0)

    @task
    def predict(self) -> None:
        """Upload an image."""
        image, kind = next(self.environment.images), {"Content-Type": "image/jpeg"}
        with self.client.post("/predict", data=image, headers=kind, catch_response=True) as answer:
            answer.request_meta["name"] = str(answer.status_code)
            if answer.status_code:
                answer.success()
