"""What ingest remembers of its last looks, on this machine only: which files it has seen, and what became of them.

An SQLite file outside version control. Losing it costs time (files are read and hashed again), never data. It is
also the journal of a run under way: a shard and what was learnt of its images are recorded in one transaction, so
that a killed run goes on behind its last whole shard.
"""

import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from rootstock.images.deep import Found
from rootstock.images.reasons import Reason
from rootstock.system.files import remove

T = TypeVar("T")
log = logging.getLogger(__name__)
NAME = "scan.sqlite"

# Of an archive: path -> size and what changes with the content; None where it is not a plain file.
Members = dict[str, tuple[int, str] | None]

SCHEMA = """
create table if not exists looked (
    source text, path text, stamp text, image_id text, reason text, primary key (source, path)
) without rowid;
create table if not exists packed (
    image_id text primary key, width int, height int, format text, phash text, shard text, offset int, size int
) without rowid;
create index if not exists packed_by_shard on packed (shard);
create table if not exists archives (source text primary key, stamp text, members text);
create table if not exists deep (source text primary key, kind text, low real, high real);
create table if not exists damaged (image_id text primary key, said text);
create table if not exists held (shard text primary key, stamp text);
create table if not exists notes (key text primary key, value text);
"""


@dataclass(frozen=True, slots=True)
class ScanRecord:
    """What one file was when it was last read: an image, or rejected."""

    path: str
    stamp: str
    image_id: str | None
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Packed:
    """An image in a shard: what the ledger knows of it before it has a split."""

    image_id: str
    width: int
    height: int
    format: str
    phash: int
    shard: str
    offset: int
    size: int


class DamagedScanError(Exception):
    """A scan cache is not what was written."""


def use(folder: Path, work: Callable[["Scan"], T]) -> T:
    """Do some work with the scan cache of a folder; where that turns out to be damaged, again, with an empty one.

    Args:
        folder: that holds it, or is to.
        work: leaves what a killed run may leave, wherever it is interrupted.
    """
    path = folder / NAME
    try:
        with Scan(path) as scan:
            return work(scan)
    except DamagedScanError as error:
        log.warning("%s was damaged (%s), and is made anew: every file is read again", path, error)
    for left in folder.glob(f"{NAME}*"):  # with its journal, which is of the damaged one
        remove(left)
    with Scan(path) as scan:
        return work(scan)


class Scan:
    """The scan cache; use as a context manager.

    Raises:
        DamagedScanError: by every method, where the file is not what was written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _reading():
            self._db = sqlite3.connect(path)
            self._db.executescript(f"begin; {SCHEMA} commit;")  # one wait for the disk, not one a table

    def __enter__(self) -> "Scan":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._db.close()

    def looks(self, source: str) -> dict[str, ScanRecord]:
        """Recall the files of a source, by path."""
        with _reading():
            rows = self._db.execute("select path, stamp, image_id, reason from looked where source = ?", (source,))
            return {
                path: ScanRecord(path, stamp, name, Reason(why) if why else None) for path, stamp, name, why in rows
            }

    def record(
        self,
        source: str,
        looks: Iterable[ScanRecord],
        packed: Iterable[Packed] = (),
        deep: Found | None = None,
        damaged: Mapping[str, str] | None = None,
    ) -> None:
        """Remember files, and the images of a finished shard, all or none.

        Args:
            source: its path.
            looks: its files.
            packed: images of a shard that is finished.
            deep: what deep images among them hold, if there are any.
            damaged: image ids among them, with what is wrong.
        """
        with _reading(), self._db:
            if deep:
                deep = deep.merged(self.deep(source))
                row = (source, deep.kind, deep.low, deep.high)
                self._db.execute("insert or replace into deep values (?, ?, ?, ?)", row)
            self._db.executemany("insert or replace into damaged values (?, ?)", (damaged or {}).items())
            self._db.executemany(
                "insert or replace into looked values (?, ?, ?, ?, ?)",
                ((source, look.path, look.stamp, look.image_id, look.reason) for look in looks),
            )
            self._db.executemany(
                "insert or replace into packed values (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    # SQLite's integers are signed: the hash goes in as text
                    (p.image_id, p.width, p.height, p.format, f"{p.phash:016x}", p.shard, p.offset, p.size)
                    for p in packed
                ),
            )

    def deep(self, source: str) -> Found | None:
        """Recall what the deep images of a source hold, all together."""
        with _reading():
            row = self._db.execute("select kind, low, high from deep where source = ?", (source,)).fetchone()
            return Found(*row) if row else None

    def forget_deep(self, source: str) -> None:
        """Forget what the deep images of a source hold: they are not packed after all."""
        with _reading(), self._db:
            self._db.execute("delete from deep where source = ?", (source,))

    def damaged(self) -> set[str]:
        """Recall the images that were taken in though something is wrong with their files."""
        with _reading():
            return {name for (name,) in self._db.execute("select image_id from damaged")}

    def packed(self, shards: Iterable[str]) -> list[Packed]:
        """Recall the images of these shards, in the order of shards and places."""
        found = []
        with _reading():
            for shard in sorted(shards):
                rows = self._db.execute("select * from packed where shard = ? order by offset", (shard,))
                found += [Packed(name, w, h, kind, int(hash_, 16), *place) for name, w, h, kind, hash_, *place in rows]
        return found

    def forget_packed_but_in(self, shards: Iterable[str]) -> None:
        """Forget images of shards that are gone: another shard may be given the name."""
        with _reading(), self._db:
            self._db.execute(
                "delete from packed where shard not in (select value from json_each(?))", (json.dumps(list(shards)),)
            )

    def held(self) -> dict[str, str]:
        """Recall the shards that were held to their names, and what of their files changes with the content."""
        with _reading():
            return dict(self._db.execute("select shard, stamp from held"))

    def hold(self, stamps: Mapping[str, str]) -> None:
        """Remember shards that were held to their names."""
        with _reading(), self._db:
            self._db.execute("delete from held")
            self._db.executemany("insert into held values (?, ?)", stamps.items())

    def forget_looks(self) -> None:
        """Look again at every file: the rules have changed. Images that are packed stay so."""
        with _reading(), self._db:
            self._db.execute("delete from looked")

    def listing(self, source: str, stamp: str) -> Members | None:
        """Recall the members of an archive, if it still has this stamp."""
        with _reading():
            row = self._db.execute(
                "select members from archives where source = ? and stamp = ?", (source, stamp)
            ).fetchone()
            return json.loads(row[0]) if row else None

    def remember_listing(self, source: str, stamp: str, members: Members) -> None:
        """Remember the members of an archive."""
        with _reading(), self._db:
            self._db.execute("insert or replace into archives values (?, ?, ?)", (source, stamp, json.dumps(members)))

    def note(self, key: str) -> str | None:
        """Recall a single value."""
        with _reading():
            row = self._db.execute("select value from notes where key = ?", (key,)).fetchone()
            return row[0] if row else None

    def remember(self, key: str, value: str) -> None:
        """Remember a single value."""
        with _reading(), self._db:
            self._db.execute("insert or replace into notes values (?, ?)", (key, value))


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        # In use, a full disk, a folder that cannot be written to: not the file's fault. But our statements are sound,
        # so one that SQLite does not understand is of other tables than ours; and a text that is none has no code.
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) != sqlite3.SQLITE_ERROR:
            raise
        raise DamagedScanError(str(error)) from error
    except (sqlite3.DatabaseError, ValueError, TypeError) as error:
        raise DamagedScanError(str(error)) from error
