"""Follows the model that is to be served: a new one is loaded beside the old one, which answers until it is ready."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from rootstock.model.serving import served
from rootstock.model.serving.served import Find, Served, Stamp
from rootstock.system import causes
from rootstock.system.errors import RootstockError

log = logging.getLogger(__name__)
RETRY_S = 10.0  # after a model that could not be loaded


class Follower:
    """Holds the model that is served, `current`, and replaces it when another one is found.

    A request keeps the model that it began with. Where none is found, or it cannot be loaded (half written, damaged),
    the old one stays: the log says why, once, and `failing` is true until it is well again.

    Args:
        find: returns the model to serve.
        megapixels: limit of an image.
        on_change: called with each new model.
    """

    def __init__(self, find: Find, megapixels: float, on_change: Callable[[Served], object] = lambda _: None) -> None:
        self._find, self._megapixels, self._on_change = find, megapixels, on_change
        self._ended = threading.Event()
        self._problem, self._retry_at = "", 0.0
        self._tried: Stamp = ()
        self._thread: threading.Thread | None = None
        with causes.described():
            self.current = served.load(find(), megapixels)
        on_change(self.current)

    @property
    def failing(self) -> bool:
        """Whether there is a newer model that cannot be served, or none at all."""
        return bool(self._problem)

    def follow(self, every_s: float) -> None:
        """Look for another model now and then, on a thread of its own, until `end`."""

        def watch() -> None:
            while not self._ended.wait(every_s):
                self.look()

        self._thread = threading.Thread(target=watch, name="reload", daemon=True)
        self._thread.start()

    def end(self, wait_s: float) -> None:
        """Look no more. A model that is being loaded is waited for: OpenVINO aborts a process that ends meanwhile."""
        self._ended.set()
        if self._thread:
            self._thread.join(wait_s)

    def look(self) -> None:
        """Replace the model if there is another one."""
        try:
            with causes.described():
                found = self._find()
                if found.digest == self.current.digest:
                    self._rename(found.name)
                elif found.stamp == self._tried and time.monotonic() < self._retry_at:
                    return
                else:
                    self._tried, self._retry_at = found.stamp, time.monotonic() + RETRY_S
                    self._change(served.load(found, self._megapixels))
        except RootstockError as error:
            self._stay(str(error), logging.WARNING)
        except Exception as error:  # of a library that met what no check foresaw: the server goes on
            self._stay(str(error) or type(error).__name__, logging.ERROR, error)
        else:
            self._problem = ""

    def _rename(self, name: str) -> None:
        if name != self.current.name:  # the model has become champion
            self._change(replace(self.current, name=name))

    def _change(self, new: Served) -> None:
        before, self.current = self.current.name, new
        log.info("%s takes the place of %s.", new.name, before)
        self._on_change(new)

    def _stay(self, why: str, level: int, error: Exception | None = None) -> None:
        if why != self._problem:
            log.log(level, "%s stays: %s", self.current.name, why, exc_info=error)
        self._problem = why
