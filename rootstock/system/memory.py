"""A memory budget for decoding images, shared by all threads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

BUDGET_BYTES = 2**30


class MemoryBudget:
    """A number of bytes; `take` waits until enough are free, and a request larger than all of them gets all of them.

    To avoid a deadlock, a holder must not take more, nor wait for a thread that is waiting.
    """

    def __init__(self, size: int) -> None:
        self.size, self.free = size, size
        self._changed = threading.Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Take bytes for the duration of the block."""
        size = min(size, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self.free >= size)
            self.free -= size
        try:
            yield
        finally:
            with self._changed:
                self.free += size
                self._changed.notify_all()


DECODING_BUDGET = MemoryBudget(BUDGET_BYTES)
