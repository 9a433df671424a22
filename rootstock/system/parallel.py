"""An ordered parallel map over threads or processes with a bounded number of pending results, and batching helpers."""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")
# Where processes pay for their start of some seconds: what Python's lock and the memory manager's cost threads grows
# with their number (docs/extraction.md, "On many cores").
PROCESSES_FROM_CORES, PROCESSES_FROM_IMAGES = 4, 10_000
IDLE_S = 60  # after which processes end


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def pays_for_processes(images: int) -> bool:
    """Whether decoding so many images pays for the start of a process per core."""
    return cores() >= PROCESSES_FROM_CORES and images >= PROCESSES_FROM_IMAGES


def limit_to_one_core() -> None:
    """Limit the calling thread to one OpenMP thread; other threads keep theirs."""
    import torch  # takes a second, and not every process needs it

    torch.get_num_threads()  # torch sets a thread's number at the first query; after that it stays what is set here
    _openmp().limit(limits=1, user_api="openmp")


@cache
def _openmp() -> "ThreadpoolController":
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()  # looks at all libraries that are loaded: some 10 ms


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    threads: int | None = None,
    window: int | None = None,
    first: Callable[[], None] | None = None,
    weigh: Callable[[T], int] = lambda item: 0,
    most: int = 0,
    processes: bool = False,
) -> Iterator[R]:
    """Yield `function(item)` in the order of `items`, computed on `threads` (default: all cores).

    At most `window` (default: four per thread) results are pending, with a total `weigh` of at most `most` unless a
    single one weighs more, so that memory stays bounded however slowly the caller consumes them. `items` is iterated in
    the caller's thread. Each thread calls `first` once before its first item. With `processes` there are processes in
    the place of threads, to which function, items and results are pickled.
    """
    threads = threads or cores()
    window = window or 4 * threads
    waiting: deque[tuple[Future[R], int]] = deque()
    weight = 0
    with (_processes if processes else _threads)(threads, first) as pool:
        try:
            for item in items:
                own = weigh(item)
                while waiting and (len(waiting) >= window or weight + own > most > 0):
                    weight -= waiting[0][1]
                    yield waiting.popleft()[0].result()
                waiting.append((pool.submit(function, item), own))
                weight += own
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()


@contextmanager
def _threads(count: int, first: Callable[[], None] | None) -> Iterator[Executor]:
    pool = ThreadPoolExecutor(count, initializer=first)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _processes(count: int, first: Callable[[], None] | None) -> Iterator[Executor]:
    """Lend processes that have stayed from the time before, or start new interpreters, without the main module."""
    from loky import get_reusable_executor

    yield get_reusable_executor(count, timeout=IDLE_S, initializer=_begin_worker, initargs=(first,))


def _begin_worker(first: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one, which ends it
    if first:
        first()


def ahead(items: Generator[T], most: int) -> Generator[T]:
    """Yield the items of a generator that runs on a thread of its own, at most that many items ahead of the caller."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, end) for _ in range(most))
        try:
            while (item := pending.popleft().result()) is not end:
                pending.append(pool.submit(next, items, end))
                yield item
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            items.close()


def bundled(items: Iterable[T], most: int, size: int, size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Group items into lists of at most `most`, each closed once its total size reaches `size`."""
    return grouped(items, size, lambda item: max(size_of(item), size // most))


def grouped(items: Iterable[T], size: int, weigh: Callable[[T], int] = lambda item: 1) -> Iterator[list[T]]:
    """Group items into lists, each closed once its total weight reaches `size`; the last may weigh less."""
    group, weight = [], 0
    for item in items:
        group.append(item)
        weight += weigh(item)
        if weight >= size:
            yield group
            group, weight = [], 0
    if group:
        yield group
