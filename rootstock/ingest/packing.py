"""Read, check and pack new files into shards, in a single pass.

Each finished shard is recorded together with its images; of the open one a killed run loses some seconds.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np

from rootstock.config import params
from rootstock.dataset import shards
from rootstock.images import value_ranges
from rootstock.images.deep import ObservedRange, Range
from rootstock.images.inspection import Checks, RangeUnknown, Reason, Rejected
from rootstock.ingest.examination import Examined, examine
from rootstock.ingest.items import Chosen, Item, as_items
from rootstock.ingest.known_ids import KnownIds
from rootstock.ingest.open_shard import OpenShard
from rootstock.ingest.scan import Packed, Scan, ScanRecord
from rootstock.ingest.sources import Source, SourceListing
from rootstock.system import progress
from rootstock.system.parallel import grouped

log = logging.getLogger(__name__)
MIB = 2**20
RECORDS_PER_COMMIT = 10_000  # files without packing between two commits
LOOKED_UP = 10_000  # ids at once
MAX_LISTED = 5  # files that a warning lists


def pack_new(
    listed: list[SourceListing], known: KnownIds, settings: params.Ingest, images_dir: Path, scan: Scan,
    ranges: dict[str, Range], scratch: Path,
) -> tuple[int, int]:  # fmt: skip
    """Read files that are not in the scan cache, and pack images that are not in the ledger.

    Args:
        listed: the sources.
        known: ids of images in local shards; those that are packed are added.
        settings: the section `ingest` of params.yaml.
        images_dir: of the shards.
        scan: the scan cache.
        ranges: black and white levels of sources, by title.
        scratch: folder for what is kept of the open shard.

    Returns:
        The number of images packed, and of files that could not be read.

    Raises:
        SourceError: a source has images with an unknown value range.
    """
    number = max((shards.number_of(name) for name in shards.names(images_dir)), default=-1) + 1
    packed = unreadable = 0
    with ExitStack() as stack:
        writer = stack.enter_context(shards.Writer(images_dir, number, int(settings.shard_mb * MIB)))
        shard = OpenShard(scratch, writer, scan)
        shard.restore(known)
        unread = [_unread(entry, known, scan) for entry in listed]
        advance = stack.enter_context(progress.bar("ingest", sum(map(len, unread))))
        if cached := sum(len(entry.source.items) for entry in listed if entry.source) - sum(map(len, unread)):
            advance(0, cached=cached)
        for entry, paths in zip(listed, unread, strict=True):
            if not entry.source or not (paths or shard.source == entry.spec.path):
                continue
            journal = _Journal(entry.spec.path, shard, scan)
            checks = replace(checks_of(settings), value_range=ranges.get(entry.spec.title()))
            for item, examined in _examined(entry.source, paths, known, checks, scan):
                why = examined.result if isinstance(examined.result, Rejected) else None
                if why and why.reason is Reason.UNREADABLE:
                    unreadable += 1
                else:
                    packed += journal.add(item, examined, known)
                advance(1, **({"rejected": 1} if why else {}))
            journal.close()
            _warn_of_damage(entry.spec, journal.damaged, settings.damaged)
            if journal.unclear:
                found = reduce(ObservedRange.merged, journal.unclear.values())
                raise value_ranges.unknown_range_error(entry.spec, found, list(journal.unclear), heir=entry.stays)
        _Journal("", shard, scan).close()  # of a source that is no longer listed
    return packed, unreadable


def _examined(
    source: Source, paths: Collection[str], known: KnownIds, checks: Checks, scan: Scan
) -> Iterator[tuple[Item, Examined]]:
    """Yield the files of a source as `examine` does; known images that are damaged are rejected if new ones are."""
    damaged = scan.damaged() if checks.damaged == "reject" else set()
    for item, examined in examine(source, paths, known, checks):
        is_damaged = isinstance(examined.result, str) and examined.result in damaged
        yield item, Examined(Rejected(Reason.DAMAGED)) if is_damaged else examined


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


def _unread(entry: SourceListing, known: KnownIds, scan: Scan) -> Collection[str]:
    """Return the files of a source that are new or changed, or whose image is in no local shard."""
    if entry.source is None:
        return ()
    entry.source.items = items = as_items(entry.source.items)
    unread = np.zeros(len(items), bool)
    for place, some in enumerate(grouped(scan.up_to_date(entry.spec.path, items), LOOKED_UP)):
        records = {item.path: record for item, record in some if record}
        names = {path: record.image_id for path, record in records.items() if record.image_id}
        packed = dict(zip(names, known.are_known(list(names.values())), strict=True))
        for at, (item, record) in enumerate(some, place * LOOKED_UP):
            unread[at] = not (item.problem or (record and (record.reason or packed.get(item.path))))
    return Chosen(items, unread)


class _Journal:
    """Packs images, and records files shard by shard, or from time to time."""

    def __init__(self, source: str, shard: OpenShard, scan: Scan) -> None:
        self.source, self.shard, self.scan = source, shard, scan
        self.records: list[ScanRecord] = []
        self.deep: ObservedRange | None = None
        self.unclear: dict[str, ObservedRange] = {}  # files with an unknown value range
        self.damaged: list[str] = []  # descriptions
        self._damaged_ids: dict[str, str] = {}

    def add(self, item: Item, examined: Examined, known: KnownIds) -> int:
        """Add one file; return the number of images packed, 1 or 0."""
        result = examined.result
        if len(self.records) >= RECORDS_PER_COMMIT and not self.shard.images:
            self.close()
        elif self.shard.keep(self.source, self.records, self.deep, self._damaged_ids):
            self._begin()
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
        image = Packed(name, result.width, result.height, result.format, examined.phash)
        self.shard.add(image, examined.content, examined.checksum)
        if self.shard.writer.full:
            self.close()
        return 1

    def close(self) -> None:
        """Finish the open shard, if any, and record it."""
        self.scan.record(self.source, self.records, self.shard.close(), self.deep, self._damaged_ids)
        self.shard.forget()
        self._begin()

    def _begin(self) -> None:
        """Begin with records anew: what there was is in the scan cache."""
        self.records, self.deep, self._damaged_ids = [], None, {}
