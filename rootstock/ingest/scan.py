"""The scan cache: which files ingest has read on this machine, and the result for each.

An SQLite file outside version control. Losing it costs time (files are read and hashed again), never data. It is
also the journal of a running ingest: a shard and the records of its images are committed in one transaction, so that a
killed run resumes after its last complete shard, and within the open one (open_shard.py).
"""

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from rootstock.dataset.image_ids import digests
from rootstock.images.deep import ObservedRange
from rootstock.images.reasons import Reason
from rootstock.ingest.items import ROWS as ROWS, Item, Stamps
from rootstock.ingest.scan_records import PACKED, Packed as Packed, ScanRecord as ScanRecord, members_in
from rootstock.system.files import remove
from rootstock.system.parallel import grouped

if TYPE_CHECKING:
    from rootstock.ingest.near_duplicates import KnownLinks  # scipy is not imported when ingest finds nothing new

T = TypeVar("T")
log = logging.getLogger(__name__)
NAME = "scan.sqlite"
MAX_BLOB_BYTES = 10**9  # SQLite's default: some 60 million links

SCHEMA = """
create table if not exists looked (
    source text, path text, stamp text, image_id text, reason text, primary key (source, path)
) without rowid;
create table if not exists packed (
    image_id text primary key, width int, height int, format text, phash text, shard text, offset int, size int
) without rowid;
create index if not exists packed_by_shard on packed (shard);
create table if not exists archives (source text primary key, stamp text, members text); -- of older versions
create table if not exists archive_parts (
    source text, stamp text, part int, members text, primary key (source, part)
);
create table if not exists deep (source text primary key, kind text, low real, high real);
create table if not exists damaged (image_id text primary key, said text);
create table if not exists held (shard text primary key, stamp text);
create table if not exists notes (key text primary key, value text);
create table if not exists seen (
    source text, place text, stamp text, at real, primary key (source, place)
) without rowid;
create table if not exists near (bits int, hashes blob, links blob, digest text);
"""


class DamagedScanError(Exception):
    """A scan cache is damaged."""


def with_scan(folder: Path, work: Callable[["Scan"], T]) -> T:
    """Run a function with the scan cache of a folder; if the cache is damaged, run it again with an empty one.

    Args:
        folder: the folder of the scan cache.
        work: must be safe to run again after an interruption at any point.
    """
    path = folder / NAME
    try:
        with Scan(path) as scan:
            return work(scan)
    except DamagedScanError as error:
        log.warning("%s was damaged (%s); rebuilding it by reading every file again", path, error)
    for left in folder.glob(f"{NAME}*"):  # including the journal of the damaged file
        remove(left)
    with Scan(path) as scan:
        return work(scan)


class Scan:
    """The scan cache; use it as a context manager.

    Raises:
        DamagedScanError: by every method, if the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _reading():
            self._db = sqlite3.connect(path)
            self._db.executescript(f"begin; {SCHEMA} commit;")  # one disk sync, not one per table

    def __enter__(self) -> "Scan":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._db.close()

    def records(self, source: str) -> Iterator[ScanRecord]:
        """Yield the records of a source, in order of their paths: a million at once would take half a gigabyte."""
        select = "select path, stamp, image_id, reason from looked where source = ? order by path"
        with _reading():
            for path, stamp, name, why in self._db.execute(select, (source,)):
                digests([name] if name else [])  # raises where one is none
                yield ScanRecord(path, stamp, name, Reason(why) if why else None)

    def last_stamp(self, source: str, path: str) -> str | None:
        """Return the stamp that a file had when an image was read from it; None if none was."""
        select = "select stamp from looked where source = ? and path = ? and image_id is not null"
        with _reading():
            row = self._db.execute(select, (source, path)).fetchone()
        return row[0] if row else None

    def has_seen(self, source: str) -> bool:
        """Return whether a run has seen some addresses of a source, and did not see all of them."""
        with _reading():
            return bool(self._db.execute("select 1 from seen where source = ? limit 1", (source,)).fetchone())

    def seen(self, source: str, place: str, since: float) -> str | None:
        """Return the stamp of an address that was seen, not before a time, by a run that did not see all of them."""
        select = "select stamp from seen where source = ? and place = ? and at >= ?"
        with _reading():
            row = self._db.execute(select, (source, place, since)).fetchone()
        return row[0] if row else None

    def keep_seen(self, source: str, seen: Iterable[tuple[str, str]], at: float) -> None:
        """Record the stamps of addresses."""
        with _reading(), self._db:
            rows = ((source, place, stamp, at) for place, stamp in seen)
            self._db.executemany("insert or replace into seen values (?, ?, ?, ?)", rows)

    def forget_seen(self, source: str) -> None:
        """Delete the stamps of addresses: all have been seen."""
        with _reading(), self._db:
            self._db.execute("delete from seen where source = ?", (source,))

    def up_to_date(self, source: str, items: Iterable[Item]) -> Iterator[tuple[Item, ScanRecord | None]]:
        """Yield each item of a source, in order of their paths, with the record of its file; None if it has changed."""
        records = self.records(source)
        record = next(records, None)
        for item in items:
            while record and record.path < item.path:  # SQLite compares UTF-8, which is ordered as Python's text is
                record = next(records, None)
            yield item, record if record and (record.path, record.stamp) == (item.path, item.stamp) else None

    def record(
        self,
        source: str,
        records: Iterable[ScanRecord],
        packed: Iterable[Packed] = (),
        deep: ObservedRange | None = None,
        damaged: Mapping[str, str] | None = None,
    ) -> None:
        """Record files and the images of a finished shard, in one transaction.

        Args:
            source: the path of the source.
            records: the records of its files.
            packed: the images of the finished shard.
            deep: the value range of deep images among them, if any.
            damaged: image ids of damaged ones among them, with a description.
        """
        with _reading(), self._db:
            if deep:
                deep = deep.merged(self.deep(source))
                row = (source, deep.kind, deep.low, deep.high)
                self._db.execute("insert or replace into deep values (?, ?, ?, ?)", row)
            self._db.executemany("insert or replace into damaged values (?, ?)", (damaged or {}).items())
            self._db.executemany(
                "insert or replace into looked values (?, ?, ?, ?, ?)",
                ((source, record.path, record.stamp, record.image_id, record.reason) for record in records),
            )
            self._db.executemany(
                "insert or replace into packed values (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    # SQLite's integers are signed, so the hash is stored as text
                    (p.image_id, p.width, p.height, p.format, f"{p.phash:016x}", p.shard, p.offset, p.size)
                    for p in packed
                ),
            )

    def deep(self, source: str) -> ObservedRange | None:
        """Return the value range of the deep images of a source, taken together."""
        with _reading():
            row = self._db.execute("select kind, low, high from deep where source = ?", (source,)).fetchone()
            return ObservedRange(*row) if row else None

    def forget_deep(self, source: str) -> None:
        """Delete the value range of a source's deep images, which were not packed after all."""
        with _reading(), self._db:
            self._db.execute("delete from deep where source = ?", (source,))

    def damaged(self) -> set[str]:
        """Return the ids of images that were ingested although their files are damaged."""
        with _reading():
            return {name for (name,) in self._db.execute("select image_id from damaged")}

    def packed(self, shards: Iterable[str]) -> list[Packed]:
        """Return the images of these shards, in order of shard and offset."""
        tables = self.packed_tables(shards)
        return [Packed(*row) for table in tables for row in zip(*table.to_pydict().values(), strict=True)]

    def packed_tables(self, shards: Iterable[str]) -> Iterator[pa.Table]:
        """Yield the images of these shards, with the fields of `Packed`, in order of shard and offset, some at a time.

        As objects, a million would take half a gigabyte.
        """
        with _reading():
            for shard in sorted(shards):
                rows = self._db.execute("select * from packed where shard = ? order by offset", (shard,))
                while some := rows.fetchmany(ROWS):
                    names, widths, heights, formats, hashes, of, offsets, sizes = zip(*some, strict=True)
                    numbers = np.array([int(text, 16) for text in hashes], np.uint64)
                    yield pa.table([names, widths, heights, formats, numbers, of, offsets, sizes], schema=PACKED)

    def packed_ids(self, shards: Iterable[str]) -> Iterator[list[str]]:
        """Yield the ids of the images of each of these shards, which are read from an index alone."""
        with _reading():
            for shard in sorted(shards):
                names = [name for (name,) in self._db.execute("select image_id from packed where shard = ?", (shard,))]
                digests(names)
                yield names

    def packed_counts(self) -> dict[str, int]:
        """Return the number of images of each shard."""
        with _reading():
            return dict(self._db.execute("select shard, count(*) from packed group by shard"))

    def forget_packed_except(self, shards: Iterable[str]) -> None:
        """Delete the images of all other shards: a new shard may reuse the name of a removed one."""
        with _reading(), self._db:
            self._db.execute(
                "delete from packed where shard not in (select value from json_each(?))", (json.dumps(list(shards)),)
            )

    def verified(self) -> dict[str, str]:
        """Return the stamps of the shards that were verified against their names."""
        with _reading():
            return dict(self._db.execute("select shard, stamp from held"))

    def set_verified(self, stamps: Mapping[str, str]) -> None:
        """Record the stamps of verified shards."""
        with _reading(), self._db:
            self._db.execute("delete from held")
            self._db.executemany("insert into held values (?, ?)", stamps.items())

    def forget_records(self) -> None:
        """Delete all file records, so that every file is checked again; packed images stay packed."""
        with _reading(), self._db:
            self._db.execute("delete from looked")

    def archive_members(self, source: str, stamp: str) -> Stamps | None:
        """Return the members of an archive by path, if its stamp is unchanged."""
        with _reading():
            for table in ("archive_parts", "archives"):
                query = f"select members from {table} where source = ? and stamp = ? order by rowid"  # noqa: S608
                rows = self._db.execute(query, (source, stamp))
                if first := rows.fetchone():
                    return Stamps.of(members_in(text for (text,) in chain([first], rows)))
        return None

    def set_archive_members(self, source: str, stamp: str, members: Stamps) -> None:
        """Record the members of an archive, some in a row: the text of a million would take 100 MB."""
        rows = ((source, stamp, at, json.dumps(dict(some))) for at, some in enumerate(grouped(members.items(), ROWS)))
        with _reading(), self._db:
            for table in ("archive_parts", "archives"):
                self._db.execute(f"delete from {table} where source = ?", (source,))  # noqa: S608
            self._db.executemany("insert into archive_parts values (?, ?, ?, ?)", rows)

    def known_links(self) -> "KnownLinks | None":
        """Return the links between near duplicates that were found last."""
        with _reading():
            row = self._db.execute("select * from near").fetchone()
        from rootstock.ingest.near_duplicates import KnownLinks

        if row is None or _digest_of(*row[:3]) != row[3]:  # SQLite has no checksums of its own
            return None
        return KnownLinks(row[0], np.frombuffer(row[1], np.uint64), np.frombuffer(row[2], np.int64).reshape(-1, 2))

    def set_known_links(self, known: "KnownLinks") -> None:
        """Store the links between near duplicates, unless there are more than SQLite takes at once."""
        row = known.bits, known.hashes.tobytes(), known.links.tobytes()
        with _reading(), self._db:
            self._db.execute("delete from near")
            if max(len(row[1]), len(row[2])) < MAX_BLOB_BYTES:
                self._db.execute("insert into near values (?, ?, ?, ?)", (*row, _digest_of(*row)))

    def value(self, key: str) -> str | None:
        """Return a single value."""
        with _reading():
            row = self._db.execute("select value from notes where key = ?", (key,)).fetchone()
            return row[0] if row else None

    def set_value(self, key: str, value: str) -> None:
        """Store a single value."""
        with _reading(), self._db:
            self._db.execute("insert or replace into notes values (?, ?)", (key, value))


def _digest_of(bits: int, hashes: bytes, links: bytes) -> str:
    digest = hashlib.sha256(b"%d %d " % (bits, len(hashes)))
    for part in (hashes, links):
        digest.update(part)
    return digest.hexdigest()


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        # Locked, disk full, folder not writable: not damage. But our statements are valid, so one that SQLite rejects
        # means foreign tables; and invalid text raises an error without a code.
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) != sqlite3.SQLITE_ERROR:
            raise
        raise DamagedScanError(str(error)) from error
    except (sqlite3.DatabaseError, ValueError, TypeError) as error:
        raise DamagedScanError(str(error)) from error
