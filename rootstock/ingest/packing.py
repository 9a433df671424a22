"""One pass over what is new: files are read, checked, and packed into shards.

Each shard is recorded with all that is in it, so that a kill loses only the open one.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from itertools import chain
from pathlib import Path

from rootstock.config import params
from rootstock.dataset import shards
from rootstock.images import inspection, value_ranges
from rootstock.images.deep import Found, Range
from rootstock.images.inspection import Checks, NewImage, RangeUnknown, Reason, Rejected
from rootstock.images.perceptual_hash import perceptual_hashes
from rootstock.ingest.layout import Item, Loader
from rootstock.ingest.scan import Packed, Scan, ScanRecord
from rootstock.ingest.sources import SourceListing
from rootstock.system import progress
from rootstock.system.parallel import bundled, ordered_map

log = logging.getLogger(__name__)
MIB = 2**20
# Small files go to a thread, and are hashed, so many together (docs/extraction.md says what that saves).
TOGETHER, TOGETHER_BYTES = 64, MIB
# Of files that have been read and not yet packed: no more is read before that, but for a single file that is larger.
READ_BYTES, UNKNOWN_BYTES = 256 * MIB, 16 * MIB
LOOKS_KEPT = 10_000  # files that need no packing are recorded every so many
NOT_YET = ""  # the name of a shard that is still open
NAMED = 5  # files that a warning names
Result = NewImage | str | Rejected  # of a file: a new image, the id of a known one, or why it is rejected


def pack_new(
    listed: list[SourceListing], known: set[str], settings: params.Ingest, images_dir: Path, scan: Scan,
    ranges: dict[str, Range],
) -> tuple[int, int]:  # fmt: skip
    """Read what the scan cache does not know, pack what the ledger does not know.

    Returns:
        How many images were packed, and how many files could not be read.

    Raises:
        SourceError: a source holds images of which nobody knows which values are black and white.
    """
    unread = [_unread(entry, known, scan) for entry in listed]
    number = max((shards.number_of(name) for name in shards.names(images_dir)), default=-1) + 1
    packed = unreadable = 0
    with (
        shards.Writer(images_dir, number, int(settings.shard_mb * MIB)) as writer,
        progress.bar("ingest", sum(map(len, unread))) as advance,
    ):
        if cached := sum(len(entry.source.items) for entry in listed if entry.source) - sum(map(len, unread)):
            advance(0, cached=cached)
        for entry, paths in zip(listed, unread, strict=True):
            if entry.source and paths:
                journal = _Journal(entry.spec.path, writer, scan)
                checks = replace(checks_of(settings), value_range=ranges.get(entry.spec.title()))
                for item, result, phash in _examine(entry.source.read(paths), known, checks, scan.damaged()):
                    if isinstance(result, Rejected) and result.reason is Reason.UNREADABLE:
                        unreadable += 1
                    else:
                        packed += journal.add(item, result, phash, known)
                    advance(1, **({"rejected": 1} if isinstance(result, Rejected) else {}))
                journal.close()
                _warn_of_damage(entry.spec, journal.damaged, settings.damaged)
                if journal.unclear:
                    found = reduce(Found.merged, journal.unclear.values())
                    raise value_ranges.ask(entry.spec, found, list(journal.unclear), heir=entry.stays)
    return packed, unreadable


def _warn_of_damage(spec: params.Source, damaged: list[str], what: str) -> None:
    if not damaged:
        return
    more = ", ..." if len(damaged) > NAMED else ""
    done = "kept" if what == "keep" else "rejected (ingest.damaged: keep takes them in)"
    log.warning("%s: %d damaged images are %s: %s%s", spec.path, len(damaged), done, ", ".join(damaged[:NAMED]), more)


def checks_of(settings: params.Ingest) -> Checks:
    """Say what a file has to be, by the parameters."""
    return Checks(
        settings.min_side, settings.max_megapixels, settings.max_side, settings.accept_wrong_extension,
        settings.damaged, settings.seconds_a_file,
    )  # fmt: skip


def _unread(entry: SourceListing, known: set[str], scan: Scan) -> set[str]:
    """Name the files of a source that are new or changed, or whose image is not in any shard here."""
    if entry.source is None:
        return set()
    looks = scan.looks(entry.spec.path)
    wanted = set()
    for item in entry.source.items:
        look = looks.get(item.path)
        same = look is not None and look.stamp == item.stamp
        if not item.problem and not (same and look and (look.reason or look.image_id in known)):
            wanted.add(item.path)
    return wanted


def _examine(
    wanted: Iterator[tuple[Item, Loader]], known: set[str], checks: Checks, damaged: set[str]
) -> Iterator[tuple[Item, Result, int]]:
    """Read and check files on all cores, in order; a new image comes with its perceptual hash."""

    def examine(group: list[tuple[Item, Loader]]) -> list[tuple[Item, Result, int]]:
        contents = [_load(load) for _, load in group]  # reading between the checks takes a tenth longer
        results = [_look(item, data, known, checks, damaged) for (item, _), data in zip(group, contents, strict=True)]
        hashes = iter(perceptual_hashes([new.thumbnail for new in results if isinstance(new, NewImage)]))
        return [
            (item, result, next(hashes) if isinstance(result, NewImage) else 0)
            for (item, _), result in zip(group, results, strict=True)
        ]

    def weight(group: list[tuple[Item, Loader]]) -> int:
        return sum(item.size or UNKNOWN_BYTES for item, _ in group)

    groups = bundled(wanted, TOGETHER, TOGETHER_BYTES, lambda entry: entry[0].size or TOGETHER_BYTES)
    return chain.from_iterable(ordered_map(examine, groups, weigh=weight, most=READ_BYTES))


def _load(load: Loader) -> bytes | Rejected:
    try:
        return load()
    except Rejected as rejected:
        return rejected


def _look(item: Item, data: bytes | Rejected, known: set[str], checks: Checks, damaged: set[str]) -> Result:
    """Check what was read of a file."""
    if isinstance(data, Rejected):
        return data
    if len(data) > inspection.MAX_FILE_BYTES:
        return Rejected(Reason.TOO_LARGE)
    try:
        name = inspection.image_id(data)
        if name not in known:
            return inspection.check(data, item.path, checks, name)
        inspection.check_header(data, item.path, checks)  # the pixels are known, this file's name is not
        if name in damaged and checks.damaged == "reject":
            return Rejected(Reason.DAMAGED)
        return name
    except Rejected as rejected:
        rejected.__context__ = None  # with the traceback it would keep the file's bytes
        return rejected.with_traceback(None)


class _Journal:
    """Packs images and records files, each shard with all that is in it, so that a kill loses only the open shard."""

    def __init__(self, source: str, writer: shards.Writer, scan: Scan) -> None:
        self.source, self.writer, self.scan = source, writer, scan
        self.looks: list[ScanRecord] = []
        self.open: list[Packed] = []
        self.deep: Found | None = None
        self.unclear: dict[str, Found] = {}  # files whose values nobody knows how to read
        self.damaged: list[str] = []  # in words
        self._damaged: dict[str, str] = {}

    def add(self, item: Item, result: Result, phash: int, known: set[str]) -> int:
        """Take in one file; returns the number of images packed, 1 or 0."""
        if len(self.looks) >= LOOKS_KEPT and not self.open:
            self.close()
        if isinstance(result, RangeUnknown):
            self.unclear[item.path] = result.found
            return 0
        if isinstance(result, Rejected):
            self.looks.append(ScanRecord(item.path, item.stamp, None, result.reason))
            if result.reason is Reason.DAMAGED:
                self.damaged.append(f"{item.path} ({result.said})")
            return 0
        name = result if isinstance(result, str) else result.image_id
        self.looks.append(ScanRecord(item.path, item.stamp, name, None))
        if isinstance(result, str) or name in known:
            return 0
        known.add(name)
        if result.deep:
            self.deep = result.deep.merged(self.deep)
        if result.said:
            self.damaged.append(f"{item.path} ({result.said})")
            self._damaged[name] = result.said
        place = self.writer.add(name, result.format, result.data)
        # The bytes are in the shard now; what stays in memory until it is full is what the ledger will say.
        size = result.width, result.height
        self.open.append(Packed(name, *size, result.format, phash, NOT_YET, place.offset, place.size))
        if self.writer.full:
            self.close()
        return 1

    def close(self) -> None:
        """Finish the open shard, if there is one, and record it."""
        shard = "" if self.writer.empty else self.writer.close()
        packed = (replace(packed, shard=shard) for packed in self.open)
        self.scan.record(self.source, self.looks, packed, self.deep, self._damaged)
        self.looks, self.open, self.deep, self._damaged = [], [], None, {}
