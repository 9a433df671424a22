"""An ordered map over threads that never holds more than a window of results."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Count the CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    threads: int | None = None,
    window: int | None = None,
    first: Callable[[], None] | None = None,
    weigh: Callable[[T], int] = lambda item: 0,
    most: int = 0,
) -> Iterator[R]:
    """Yield `function(item)` in the order of `items`, computed on `threads` (all cores) at once.

    At most `window` (four a thread) results are under way or waiting, so that memory stays bounded however
    slowly the caller takes them; nor more than weigh `most` together, but for a single one that weighs more. `items` is
    drawn in the caller's thread. Each thread calls `first` before all else.
    """
    threads = threads or cores()
    window = window or 4 * threads
    waiting: deque[tuple[Future[R], int]] = deque()
    weight = 0
    with ThreadPoolExecutor(threads, initializer=first) as pool:
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
            pool.shutdown(wait=True, cancel_futures=True)


def bundled(items: Iterable[T], most: int, size: int, size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Put items together into lists that end with their `most`th, or with the one by which they are `size` or more."""
    return grouped(items, size, lambda item: max(size_of(item), size // most))


def grouped(items: Iterable[T], size: int, weigh: Callable[[T], int] = lambda item: 1) -> Iterator[list[T]]:
    """Put items together into lists that weigh `size` or, by their last, more; what is left over may weigh less."""
    group, weight = [], 0
    for item in items:
        group.append(item)
        weight += weigh(item)
        if weight >= size:
            yield group
            group, weight = [], 0
    if group:
        yield group
