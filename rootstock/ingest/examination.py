"""Read and check files on all cores: in threads or, of many local files, in processes, each with a lock of its own.

Under Python's lock, a photo's checks take most of a millisecond, so that threads cannot use many cores
(docs/extraction.md).
"""

import logging
import zlib
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pickle import PickleBuffer

import numpy as np

from rootstock.images import inspection
from rootstock.images.inspection import Checks, NewImage, Reason, Rejected
from rootstock.images.perceptual_hash import perceptual_hashes
from rootstock.ingest import known_ids
from rootstock.ingest.items import Item, among
from rootstock.ingest.known_ids import KnownIds
from rootstock.ingest.layout import Loader
from rootstock.ingest.sources import Source
from rootstock.system import processes
from rootstock.system.parallel import bundled, cores, ordered_map
from rootstock.system.processes import ordered_map_in_processes

log = logging.getLogger(__name__)
MIB = 2**20
# Small files are read and hashed in batches of this size per thread (savings: docs/extraction.md).
FILES_PER_TASK, BYTES_PER_TASK = 64, MIB
SMALL_BYTES = 2**16  # on average
SLOT_BYTES = 2 * MIB  # of shared memory for a batch from a process; what is larger comes through a pipe
# Limit on files read but not yet packed; a single larger file is still read. The second is the assumed unknown size.
MAX_READ_BYTES, UNKNOWN_BYTES = 256 * MIB, 16 * MIB
NO_THUMBNAIL = np.zeros((0, 0), np.uint8)
Group = list[tuple[Item, Loader]]
Result = NewImage | str | Rejected  # of a file: a new image, the id of a known image, or a rejection


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found of a file; of a new image also its perceptual hash, and the bytes to pack with their CRC-32."""

    result: Result
    phash: int = 0
    data: bytes | memoryview | PickleBuffer = b""
    checksum: int = 0

    @property
    def content(self) -> bytes | memoryview:
        """Return the bytes; a buffer meant for pickle that a thread has filled, for want of shared memory, too."""
        return self.data.raw() if isinstance(self.data, PickleBuffer) else self.data


Seen = tuple[Item, Examined]


def examine(source: Source, paths: Collection[str], known: KnownIds, checks: Checks) -> Iterator[Seen]:
    """Read and check files of a source on all cores, in order.

    Args:
        source: listed.
        paths: of its files that are to be read.
        known: ids of images that are packed already; of these only the header is checked.
        checks: to apply.
    """
    groups = bundled(source.read(paths), FILES_PER_TASK, BYTES_PER_TASK, lambda entry: entry[0].size or BYTES_PER_TASK)
    if source.local and _processes_pay(among(source.items, paths), len(paths)):
        log.info("ingest: checking files in %d processes", cores())
        with known_ids.in_file(known) as listed:
            examiner = _InProcess(Examiner(listed, checks))
            yield from _with_items(partial(ordered_map_in_processes, examiner, bytes_each=SLOT_BYTES), groups)
    else:
        yield from _with_items(partial(ordered_map, Examiner(known, checks)), groups)


def _processes_pay(items: Iterable[Item], count: int) -> bool:
    """Whether many files pay for the start of processes: of small ones, threads make little use of a second core."""
    if count < processes.FROM_IMAGES:
        return False
    small = sum(item.size or 0 for item in items) <= SMALL_BYTES * count
    return cores() >= (2 if small else processes.FROM_CORES)


@dataclass(frozen=True)
class Examiner:
    """Reads and checks a few files: pairs of a path, for its extension, and what loads the file."""

    known: Container[str]
    checks: Checks

    def __call__(self, files: list[tuple[str, Loader]]) -> list[Examined]:
        """Return the result of each file."""
        contents = [_load(load) for _, load in files]  # reading and checking alternately is 10 % slower
        results = [self._check(path, data) for (path, _), data in zip(files, contents, strict=True)]
        hashes = iter(perceptual_hashes([new.thumbnail for new in results if isinstance(new, NewImage)]))
        return [
            Examined(result, next(hashes), result.data, zlib.crc32(result.data))
            if isinstance(result, NewImage)
            else Examined(result)
            for result in results
        ]

    def _check(self, path: str, data: bytes | Rejected) -> Result:
        if isinstance(data, Rejected):
            return data
        if len(data) > inspection.MAX_FILE_BYTES:
            return Rejected(Reason.TOO_LARGE)
        try:
            name = inspection.image_id(data)
            if name not in self.known:
                return inspection.check(data, path, self.checks, name)
            inspection.check_header(data, path, self.checks)  # known image, but possibly under a wrong extension
            return name
        except Rejected as rejected:
            rejected.__context__ = None  # context and traceback would keep the file's bytes alive
            return rejected.with_traceback(None)


def _load(load: Loader) -> bytes | Rejected:
    try:
        return load()
    except Rejected as rejected:
        return rejected


def _with_items(run: Callable[..., Iterator[list[Examined]]], groups: Iterable[Group]) -> Iterator[Seen]:
    """Run an ordered map over groups of files, and put the results beside their items, which stay in this process."""
    waiting: deque[list[Item]] = deque()

    def sent() -> Iterator[list[tuple[str, Loader]]]:
        for group in groups:
            waiting.append([item for item, _ in group])
            yield [(item.path, load) for item, load in group]

    def weigh(_: object) -> int:
        return sum(item.size or UNKNOWN_BYTES for item in waiting[-1])

    for found in run(items=sent(), weigh=weigh, most=MAX_READ_BYTES):
        yield from zip(waiting.popleft(), found, strict=True)


@dataclass(frozen=True)
class _InProcess:
    """Examines in another process; bytes come back in shared memory, thumbnails stay, as they have been hashed."""

    examiner: Examiner

    def __call__(self, files: list[tuple[str, Loader]]) -> list[Examined]:
        return [_slim(found) for found in self.examiner(files)]


def _slim(found: Examined) -> Examined:
    if not isinstance(found.result, NewImage):
        return found
    result = replace(found.result, data=b"", thumbnail=NO_THUMBNAIL)
    return replace(found, result=result, data=PickleBuffer(found.data))
