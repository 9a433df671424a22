"""Read, check and pack new files into shards, in a single pass.

Each finished shard is recorded together with its images, so that a killed run loses only the open one.
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
from rootstock.images.deep import ObservedRange, Range
from rootstock.images.inspection import Checks, NewImage, RangeUnknown, Reason, Rejected
from rootstock.images.perceptual_hash import perceptual_hashes
from rootstock.ingest.layout import Item, Loader
from rootstock.ingest.scan import Packed, Scan, ScanRecord
from rootstock.ingest.sources import SourceListing
from rootstock.system import progress
from rootstock.system.parallel import bundled, ordered_map

log = logging.getLogger(__name__)
MIB = 2**20
# Small files are read and hashed in batches of this size per thread (savings: docs/extraction.md).
FILES_PER_TASK, BYTES_PER_TASK = 64, MIB
# Limit on files read but not yet packed; a single larger file is still read. The second is the assumed unknown size.
MAX_READ_BYTES, UNKNOWN_BYTES = 256 * MIB, 16 * MIB
RECORDS_PER_COMMIT = 10_000  # files without packing between two commits
OPEN_SHARD = ""  # placeholder name of the shard still being written
MAX_LISTED = 5  # files that a warning lists
Result = NewImage | str | Rejected  # of a file: a new image, the id of a known image, or a rejection


def pack_new(
    listed: list[SourceListing], known: set[str], settings: params.Ingest, images_dir: Path, scan: Scan,
    ranges: dict[str, Range],
) -> tuple[int, int]:  # fmt: skip
    """Read files that are not in the scan cache, and pack images that are not in the ledger.

    Returns:
        The number of images packed, and of files that could not be read.

    Raises:
        SourceError: a source has images with an unknown value range.
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
                    found = reduce(ObservedRange.merged, journal.unclear.values())
                    raise value_ranges.unknown_range_error(entry.spec, found, list(journal.unclear), heir=entry.stays)
    return packed, unreadable


def _warn_of_damage(spec: params.Source, damaged: list[str], what: str) -> None:
    if not damaged:
        return
    more = ", ..." if len(damaged) > MAX_LISTED else ""
    done = "kept" if what == "keep" else "rejected (to ingest them, set ingest.damaged to keep)"
    named = ", ".join(damaged[:MAX_LISTED]) + more
    log.warning("%s: %s damaged images are %s: %s", spec.path, f"{len(damaged):,}", done, named)


def checks_of(settings: params.Ingest) -> Checks:
    """Return the checks that the parameters ask for."""
    return Checks(
        settings.min_side, settings.max_megapixels, settings.max_side, settings.accept_wrong_extension,
        settings.damaged, settings.max_decode_seconds,
    )  # fmt: skip


def _unread(entry: SourceListing, known: set[str], scan: Scan) -> set[str]:
    """Return the files of a source that are new or changed, or whose image is in no local shard."""
    if entry.source is None:
        return set()
    return {
        item.path
        for item, record in scan.up_to_date(entry.spec.path, entry.source.items)
        if not item.problem and not (record and (record.reason or record.image_id in known))
    }


def _examine(
    wanted: Iterator[tuple[Item, Loader]], known: set[str], checks: Checks, damaged: set[str]
) -> Iterator[tuple[Item, Result, int]]:
    """Read and check files on all cores, in order; new images come with their perceptual hash."""

    def examine(group: list[tuple[Item, Loader]]) -> list[tuple[Item, Result, int]]:
        contents = [_load(load) for _, load in group]  # reading and checking alternately is 10 % slower
        results = [
            _check_file(item, data, known, checks, damaged) for (item, _), data in zip(group, contents, strict=True)
        ]
        hashes = iter(perceptual_hashes([new.thumbnail for new in results if isinstance(new, NewImage)]))
        return [
            (item, result, next(hashes) if isinstance(result, NewImage) else 0)
            for (item, _), result in zip(group, results, strict=True)
        ]

    def weight(group: list[tuple[Item, Loader]]) -> int:
        return sum(item.size or UNKNOWN_BYTES for item, _ in group)

    groups = bundled(wanted, FILES_PER_TASK, BYTES_PER_TASK, lambda entry: entry[0].size or BYTES_PER_TASK)
    return chain.from_iterable(ordered_map(examine, groups, weigh=weight, most=MAX_READ_BYTES))


def _load(load: Loader) -> bytes | Rejected:
    try:
        return load()
    except Rejected as rejected:
        return rejected


def _check_file(item: Item, data: bytes | Rejected, known: set[str], checks: Checks, damaged: set[str]) -> Result:
    """Check the bytes of a file."""
    if isinstance(data, Rejected):
        return data
    if len(data) > inspection.MAX_FILE_BYTES:
        return Rejected(Reason.TOO_LARGE)
    try:
        name = inspection.image_id(data)
        if name not in known:
            return inspection.check(data, item.path, checks, name)
        inspection.check_header(data, item.path, checks)  # known image, but possibly under a wrong extension
        if name in damaged and checks.damaged == "reject":
            return Rejected(Reason.DAMAGED)
        return name
    except Rejected as rejected:
        rejected.__context__ = None  # context and traceback would keep the file's bytes alive
        return rejected.with_traceback(None)


class _Journal:
    """Packs images and records files shard by shard, so that a killed run loses only the open shard."""

    def __init__(self, source: str, writer: shards.Writer, scan: Scan) -> None:
        self.source, self.writer, self.scan = source, writer, scan
        self.records: list[ScanRecord] = []
        self.open: list[Packed] = []
        self.deep: ObservedRange | None = None
        self.unclear: dict[str, ObservedRange] = {}  # files with an unknown value range
        self.damaged: list[str] = []  # descriptions
        self._damaged_ids: dict[str, str] = {}

    def add(self, item: Item, result: Result, phash: int, known: set[str]) -> int:
        """Add one file; return the number of images packed, 1 or 0."""
        if len(self.records) >= RECORDS_PER_COMMIT and not self.open:
            self.close()
        if isinstance(result, RangeUnknown):
            self.unclear[item.path] = result.found
            return 0
        if isinstance(result, Rejected):
            self.records.append(ScanRecord(item.path, item.stamp, None, result.reason))
            if result.reason is Reason.DAMAGED:
                self.damaged.append(f"{item.path} ({result.detail})")
            return 0
        name = result if isinstance(result, str) else result.image_id
        self.records.append(ScanRecord(item.path, item.stamp, name, None))
        if isinstance(result, str) or name in known:
            return 0
        known.add(name)
        if result.deep:
            self.deep = result.deep.merged(self.deep)
        if result.damage:
            self.damaged.append(f"{item.path} ({result.damage})")
            self._damaged_ids[name] = result.damage
        place = self.writer.add(name, result.format, result.data)
        # The bytes are in the shard now; only the ledger entry stays in memory until the shard is full.
        size = result.width, result.height
        self.open.append(Packed(name, *size, result.format, phash, OPEN_SHARD, place.offset, place.size))
        if self.writer.full:
            self.close()
        return 1

    def close(self) -> None:
        """Finish the open shard, if any, and record it."""
        shard = "" if self.writer.empty else self.writer.close()
        packed = (replace(packed, shard=shard) for packed in self.open)
        self.scan.record(self.source, self.records, packed, self.deep, self._damaged_ids)
        self.records, self.open, self.deep, self._damaged_ids = [], [], None, {}
