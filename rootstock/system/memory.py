"""A memory budget for decoding images, shared by all threads and, in part, by processes; and memory given back."""

import ctypes
import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BUDGET_BYTES = 2**30
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # parameters of mallopt (malloc.h)
SET_BY_USERS = {"MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}
LEAST_BYTES = 2**28  # that each of several processes has: photos of up to 85 megapixels at once


def prefer_jemalloc() -> None:
    """Let Arrow, when it is imported, allocate by jemalloc: with mimalloc ingest takes a fifth more."""
    if sys.platform == "linux":  # where wheels of pyarrow have it
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")


def release_unused() -> None:
    """Give memory that was freed back to the system: each thread's heap and Arrow keep it, of large sets a gigabyte."""
    import pyarrow as pa  # takes a tenth of a second, and not every process needs it

    pa.default_memory_pool().release_unused()
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def reused() -> Iterator[None]:
    """Keep memory that is freed inside the block for what is allocated next, and give it back after the block.

    A step of training allocates what the one before has freed. By default glibc gives large blocks back, and gets
    others for the next step, whose pages the system fills with zeros again (docs/benchmarks.md).
    """
    with _allocating({MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}):
        yield


@contextmanager
def given_back() -> Iterator[None]:
    """Give each large block back to the system as soon as it is freed inside the block.

    By default glibc does so only until a larger one is freed; from then on columns of a million rows come from its
    heap, which keeps the gaps that they leave.
    """
    release_unused()
    with _allocating({MMAP_THRESHOLD: 2**17}):
        yield


@contextmanager
def _allocating(inside: dict[int, int]) -> Iterator[None]:
    """Set parameters of glibc's malloc inside the block."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or SET_BY_USERS & os.environ.keys():  # not glibc, or tuned by a person
        yield
        return
    for parameter, value in inside.items():
        mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in {MMAP_MAX: 2**16, TRIM_THRESHOLD: 2**26, MMAP_THRESHOLD: 2**25}.items():
            mallopt(parameter, value)
        release_unused()


class MemoryBudget:
    """A number of bytes; `take` waits until enough are free, and a request larger than all of them gets all of them.

    To avoid a deadlock, a holder must not take more, nor wait for a thread that is waiting.
    """

    def __init__(self, size: int) -> None:
        self.size, self.free = size, size
        self._changed = threading.Condition()
        self._lock: Path | None = None

    def share(self, processes: int, lock: Path) -> None:
        """Leave this process its part of the budget; larger requests are met in one process at a time.

        Args:
            processes: that share the budget, this one among them.
            lock: a file that all of them can open.
        """
        self.size = self.free = max(self.size // processes, min(self.size, LEAST_BYTES))
        self._lock = lock

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Take bytes for the duration of the block."""
        with self._alone(size), self._within(min(size, self.size)):
            yield

    @contextmanager
    def _within(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self.free >= size)
            self.free -= size
        try:
            yield
        finally:
            with self._changed:
                self.free += size
                self._changed.notify_all()

    @contextmanager
    def _alone(self, size: int) -> Iterator[None]:
        """Hold the lock of all processes for a request that is larger than this one's part."""
        if self._lock is None or size <= self.size:
            yield
            return
        with self._lock.open("rb") as file:  # a lock ends with its process, however that ends
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


DECODING_BUDGET = MemoryBudget(BUDGET_BYTES)
