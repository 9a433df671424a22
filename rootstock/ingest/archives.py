"""Read zip and tar archives as sources, in member order, without unpacking them to disk.

Listing an archive means reading its index (for a tar, the whole file), so the listing is cached until the archive's
stamp changes.
"""

import heapq
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rootstock.config import params
from rootstock.images.inspection import Reason, Rejected
from rootstock.ingest import file_names, layout_choice, tar_members, zip_members
from rootstock.ingest.item_rows import Rows
from rootstock.ingest.items import Item, Items, Stamps, as_items, rows_of
from rootstock.ingest.junk import is_junk
from rootstock.ingest.layout import SPLITS, Loader
from rootstock.ingest.layout_choice import Known
from rootstock.ingest.scan import Scan
from rootstock.system.availability import is_unavailable
from rootstock.system.errors import SourceError


@dataclass
class Archive:
    """The members of a zip or tar, read in member order."""

    store: Any
    root: str
    items: Sequence[Item]
    notes: list[str] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)  # as recorded in the summary
    empty: tuple[str, ...] = ()  # empty class folders
    local: bool = False  # its members are read here

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Item, Loader]]:
        """Yield the wanted members, reading their bytes here, since an archive only allows a single pass."""
        items = as_items(self.items)
        missing = rows_of(items, wanted)
        rows, left = Rows(items, missing), int(np.count_nonzero(missing))
        is_zip = self.root.lower().endswith(".zip")
        try:
            with _open(self.store, self.root, is_zip) as file:
                for path, stamp, load in (zip_members if is_zip else tar_members).members(file) if left else ():
                    if (row := rows.of(path)) is not None and missing[row]:
                        item: Item = items[row]
                        if stamp in (None, item.stamp):
                            missing[row], left = False, left - 1
                            yield item, _load_now(load)
                    if not left:
                        break
        except Exception as error:
            raise SourceError(f"{self.root}: could not be read completely: {error}") from error


@contextmanager
def _open(store: Any, root: str, anywhere: bool) -> Iterator[Any]:  # noqa: ANN401
    """Open a file of a store for random access (`anywhere`) or sequential reading.

    A web server may only send a whole file; random access then goes through a local copy.
    """
    with store.open(root, "rb") as file:
        try:
            if anywhere:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                file.read(1)
                file.seek(0)
            streams_only = False
        except ValueError:
            streams_only = True
        if not streams_only:
            yield file
            return
    with TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        store.get_file(root, str(copy))
        with copy.open("rb") as file:
            yield file


def _load_now(load: Callable[[], bytes]) -> Loader:
    """Read a member now; return a function that returns its bytes or raises the reason for rejection."""
    try:
        data = load()
    except Exception as error:  # of the store; or a wrong checksum, unknown compression, a password, of the member
        may_pass = isinstance(error, OSError | MemoryError) or is_unavailable(error)
        reason = Reason.UNREADABLE if may_pass else Reason.UNDECODABLE
        return lambda: _reject(reason)
    return lambda: data


def _reject(reason: Reason) -> bytes:
    raise Rejected(reason)


def read_members(store: Any, root: str, stamp: str, where: str) -> Stamps:  # noqa: ANN401
    """List the members of an archive by path, or raise a SourceError that begins with `where`."""
    is_zip = root.lower().endswith(".zip")
    try:
        with _open(store, root, is_zip) as file:
            return zip_members.list_members(file) if is_zip else tar_members.list_members(file, stamp)
    except Exception as error:  # zipfile and tarfile raise anything on damaged bytes
        if isinstance(error, PermissionError) or is_unavailable(error):  # an error of the store, not of the archive
            raise
        raise SourceError(f"{where} is not a readable archive: {error}") from None


def list_archive(
    spec: params.Source, store: Any, root: str, stamp: str, scan: Scan, known: Known,  # noqa: ANN401
) -> Archive:  # fmt: skip
    """List an archive, from the scan cache if its stamp is unchanged.

    Raises:
        SourceError: the file is damaged, or not an archive.
    """
    members = scan.archive_members(spec.path, stamp)
    if members is None:
        members = read_members(store, root, stamp, f"ingest.sources: {spec.path}")
        scan.set_archive_members(spec.path, stamp, members)
    safe = np.array([bool(stamp) and not file_names.is_unsafe(path) for path, stamp in members.items()], bool)
    read = layout_choice.read_paths(members.chosen(safe), spec, known)
    unsafe = (path for path in members.chosen(~safe) if not is_junk(path) and not path.endswith("/"))
    others = (Item(path, "", spec.domain, SPLITS, stamp, Reason.UNSAFE_PATH) for path in unsafe)
    items = read.files.items if safe.all() else Items.of(heapq.merge(read.files.items, others, key=attrgetter("path")))
    return Archive(store, root, items, read.files.notes, read.layout, read.files.empty)
