"""An ordered parallel map over processes, which hand NumPy arrays back in shared memory.

What threads lose to Python's lock and to the memory management that they share grows with their number; processes take
seconds to start. Through a pipe, arrays of decoded images would take longer than their decoding (docs/extraction.md).
"""

import logging
import mmap
import os
import pickle
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from rootstock.system.memory import DECODING_BUDGET
from rootstock.system.parallel import cores, in_order, ordered_map

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)
FROM_CORES, FROM_IMAGES = 4, 10_000  # from which decoding in processes pays for their start
IDLE_S = 60  # after which processes end
# loky replaces a process that has grown by 300 MB, which the shared memory alone may take.
KEEP = {"LOKY_MAX_MEMORY_LEAK_SIZE": "1e15"}
SHARED_MEMORY = "/dev/shm"  # noqa: S108  memory, not a folder for files; small in many containers


def pay(images: int, count: int | None = None) -> bool:
    """Whether decoding so many images pays for the start of so many processes (None: one per core)."""
    return (count or cores()) >= FROM_CORES and images >= FROM_IMAGES


def ordered_map_in_processes(
    function: Callable[[T], R],
    items: Iterable[T],
    bytes_each: int,
    window: int | None = None,
    first: Callable[[], object] | None = None,
    weigh: Callable[[T], int] = lambda item: 0,
    most: int = 0,
    count: int | None = None,
) -> Iterator[R]:
    """Yield `function(item)` in the order of `items`, computed in processes.

    Args:
        function: pickled, like the items and its results. Exceptions are raised here.
        items: iterated in the caller's thread.
        bytes_each: of the NumPy arrays in a result, usually; more, and all with 0, are handed back through a pipe.
        window: most results pending; default: four per process.
        first: called once in each process.
        weigh: as in `ordered_map`.
        most: as in `ordered_map`.
        count: of processes; default: one per core.

    Where there is too little shared memory, threads do the work.
    """
    count = count or cores()
    window = window or 4 * count
    try:
        slots = _Slots(window, bytes_each)
    except OSError as error:
        log.info("%s: %s; falling back to threads", SHARED_MEMORY, error.strerror)
        yield from ordered_map(function, items, count, window, first, weigh, most)
        return
    with closing(slots):
        pool = _living_pool(first, count)
        into_slot = _IntoSlot(function, slots.path, slots.inode, bytes_each)
        try:
            submit = partial(_submit, pool, into_slot, slots)
            for returned in in_order(submit, items, window, weigh, most):
                yield slots.receive(returned)
        except BrokenProcessPool:
            _pool.cache_clear()
            raise


def _submit(pool: Executor, into_slot: "_IntoSlot", slots: "_Slots", item: object) -> "Future[_Returned]":
    return pool.submit(into_slot, slots.take(), item)


def _living_pool(first: Callable[[], object] | None, count: int) -> Executor:
    """Return the processes, or new ones if one of them has died since they were last used."""
    pool = _pool(first, count)
    try:
        pool.submit(int).result()
    except BrokenProcessPool:
        _pool.cache_clear()
        pool = _pool(first, count)
    return pool


@lru_cache(maxsize=1)
def _pool(first: Callable[[], object] | None, count: int) -> Executor:
    """Start the processes; they stay for the next time, which loky's own reusable pool does for one thread alone."""
    from loky import ProcessPoolExecutor  # new interpreters, which do not run the main module

    lock = Path(f"/proc/{os.getpid()}/fd/{_lock_file().fileno()}")
    pool: Executor = ProcessPoolExecutor(
        count, timeout=IDLE_S, initializer=_begin, initargs=(first, count, lock), env=KEEP
    )
    return pool


@cache
def _lock_file() -> IO[bytes]:
    """Open a file without a name that lives as long as this process."""
    return tempfile.TemporaryFile()


def _begin(first: Callable[[], object] | None, count: int, lock: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one, which ends it
    DECODING_BUDGET.share(count, lock)
    if first:
        first()


@dataclass(frozen=True)
class _Returned:
    """A result: pickled, and the sizes of its arrays in the slot."""

    slot: int
    pickled: bytes
    sizes: list[int]


class _Slots:
    """Places in shared memory, in a file without a name: it vanishes with the processes, however they end."""

    def __init__(self, count: int, size: int) -> None:
        self.size = size
        self._file = tempfile.TemporaryFile(dir=SHARED_MEMORY)  # noqa: SIM115  closed by `close`
        try:
            whole = max(count * size, 1)  # neither call takes nothing
            os.posix_fallocate(self._file.fileno(), 0, whole)
            self._memory = mmap.mmap(self._file.fileno(), whole)
        except OSError:
            self._file.close()
            raise
        self._free = deque(range(count))
        self.path, self.inode = f"/proc/{os.getpid()}/fd/{self._file.fileno()}", os.fstat(self._file.fileno()).st_ino

    def take(self) -> int:
        """Return a free slot."""
        return self._free.popleft()

    def receive(self, returned: _Returned) -> Any:  # noqa: ANN401
        """Return a result with arrays of its own, and make its slot free."""
        at = returned.slot * self.size
        shared = np.frombuffer(self._memory, np.uint8, sum(returned.sizes), at)
        own = shared.copy().data  # copied without the GIL
        del shared  # else the memory could not be closed
        self._free.append(returned.slot)
        ends = accumulate(returned.sizes, initial=0)
        return pickle.loads(returned.pickled, buffers=[own[a:b] for a, b in pairwise(ends)])  # noqa: S301  our own

    def close(self) -> None:
        """Release the memory, once the processes that still write to it are done."""
        self._memory.close()
        self._file.close()


@dataclass(frozen=True)
class _IntoSlot:
    function: Callable[[Any], Any]
    path: str
    inode: int
    size: int

    def __call__(self, slot: int, item: object) -> _Returned:
        result = self.function(item)
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
        arrays = [buffer.raw() for buffer in buffers]
        if sum(array.nbytes for array in arrays) > self.size:
            return _Returned(slot, pickle.dumps(result, protocol=5), [])
        memory, at = _attached(self.path, self.inode), slot * self.size
        for array in arrays:
            memory[at : at + array.nbytes] = array
            at += array.nbytes
        return _Returned(slot, pickled, [array.nbytes for array in arrays])


@lru_cache(maxsize=2)
def _attached(path: str, inode: int) -> mmap.mmap:
    """Map the shared memory of the process that started this one; the inode tells one file from the next."""
    with Path(path).open("r+b") as file:
        if os.fstat(file.fileno()).st_ino != inode:  # once a file is closed, another one gets its number
            raise FileNotFoundError(f"{path} is another file by now")
        return mmap.mmap(file.fileno(), 0)
