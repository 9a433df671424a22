"""An ordered parallel map over threads with a bounded number of pending results, and batching helpers."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from rootstock.system import progress

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")
PULSE_S = 1.0  # a run that is stopped notices while it waits
CHUNK_VALUES = 1_000_000  # of a matrix at a time: 8 MB in float64


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def rank() -> int:
    """Return the number of this process among those that torchrun has started together, 0 if it is alone."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def limit_to_one_core() -> AbstractContextManager[object]:
    """Limit the calling thread to one OpenMP thread, for good or, by `with`, for a block; other threads keep theirs."""
    import torch  # takes a second, and not every process needs it

    torch.get_num_threads()  # torch sets a thread's number at the first query; after that it stays what is set here
    limited: AbstractContextManager[object] = _openmp().limit(limits=1, user_api="openmp")
    return limited


@cache
def _openmp() -> "ThreadpoolController":
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()  # looks at all libraries that are loaded: some 10 ms


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    threads: int | None = None,
    window: int | None = None,
    first: Callable[[], object] | None = None,
    weigh: Callable[[T], int] = lambda item: 0,
    most: int = 0,
    *,
    patient: bool = True,
) -> Iterator[R]:
    """Yield `function(item)` in the order of `items`, computed on `threads` (default: all cores).

    At most `window` (default: four per thread) results are pending, with a total `weigh` of at most `most` unless a
    single one weighs more, so that memory stays bounded however slowly the caller consumes them. `items` is iterated in
    the caller's thread. Each thread calls `first` once before its first item. If it ends early, it waits for its
    threads, unless it is not `patient`: they may wait for a network.
    """
    threads = threads or cores()
    pool = ThreadPoolExecutor(threads, initializer=first)
    try:
        yield from in_order(lambda item: pool.submit(function, item), items, window or 4 * threads, weigh, most)
    except BaseException:
        pool.shutdown(wait=patient, cancel_futures=True)
        raise
    pool.shutdown()


def map_rows(function: Callable[[slice], R], n: int, k: int) -> list[R]:
    """Return `function(rows)` for chunks of the rows of a matrix (n, k), in order, computed on all cores.

    What a function derives from a large matrix thus takes the memory of a few chunks.
    """
    rows = max(1, CHUNK_VALUES // max(1, k))
    chunks = [slice(start, min(start + rows, n)) for start in range(0, n, rows)]
    return [function(chunk) for chunk in chunks] if len(chunks) < 2 else list(ordered_map(function, chunks))


def map_on_one_core_each(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield `function(item)` in the order of `items`, each computed on one core, with as many at once as there are.

    For work whose products are too small to share, above all on cores that others use.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield from ordered_map(function, items, first=limit_to_one_core)


def in_order(
    submit: Callable[[T], "Future[R]"],
    items: Iterable[T],
    window: int,
    weigh: Callable[[T], int] = lambda item: 0,
    most: int = 0,
) -> Iterator[R]:
    """Yield the results of items in their order, with a bounded number pending; see `ordered_map`."""
    waiting: deque[tuple[Future[R], int]] = deque()
    weight = 0
    try:
        for item in items:
            own = weigh(item)
            while waiting and (len(waiting) >= window or weight + own > most > 0):
                weight -= waiting[0][1]
                yield _result(waiting.popleft()[0])
            waiting.append((submit(item), own))
            weight += own
        while waiting:
            yield _result(waiting.popleft()[0])
    finally:
        for future, _ in waiting:
            future.cancel()


def _result(future: "Future[R]") -> R:
    """Wait for a result, or until the run is stopped."""
    while not future.done():
        if not wait([future], PULSE_S).done:
            progress.pulse()
    return future.result()


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
