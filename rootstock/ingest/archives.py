"""Zip and tar archives as sources: members are listed, and read in their order, never unpacked to disk.

Listing an archive means reading its index (of a tar: all of it), so what was listed is remembered as long as the
archive's own stamp stays.
"""

import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from rootstock.config import params
from rootstock.images.inspection import Reason, Rejected
from rootstock.ingest import layout, layouts
from rootstock.ingest.layout import SPLITS, Item, Loader
from rootstock.ingest.layouts import Known
from rootstock.ingest.litter import is_litter
from rootstock.ingest.scan import Members, Scan
from rootstock.system.availability import is_unavailable
from rootstock.system.errors import SourceError

READS_IN_VAIN = 100  # behind the end of a tar
HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
MOST_HEADER_BYTES = 2**20  # of names, times and the like of one member
# An archive may unpack to so many bytes, or so many times what packs them: bitmaps of one colour reach 1,000 each.
MOST_UNPACKED_BYTES, MOST_TIMES = 2**32, 100


MOST_MEMBERS = 2**21  # each takes a kilobyte while it is listed, and more later
MOST_INDEX_BYTES = 2**28  # of a zip, which is read as a whole: 128 a member
ZIP64_BYTES = 76  # that may stand between the index and the end record


@dataclass
class Archive:
    """The members of a zip or tar, read in their order."""

    store: Any
    root: str
    items: list[Item]
    notes: list[str] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)  # how it was read, as the summary keeps it
    empty: tuple[str, ...] = ()  # class folders that hold nothing

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Item, Loader]]:
        """Yield the wanted members; their bytes are read here, in one pass, as the archive allows no other way."""
        missing = {item.path: item for item in self.items if item.path in wanted}
        is_zip = self.root.lower().endswith(".zip")
        try:
            with _opened(self.store, self.root, is_zip) as file:
                for path, load in (_zip_members if is_zip else _tar_members)(file) if missing else ():
                    if item := missing.pop(path, None):
                        yield item, _loaded(load)
                    if not missing:
                        break
        except Exception as error:
            raise SourceError(f"{self.root}: could not be read to its end: {error}") from error


@contextmanager
def _opened(store: Any, root: str, anywhere: bool) -> Iterator[Any]:  # noqa: ANN401
    """Open a file of a store, to be read from `anywhere` or from front to back.

    A web server may only send a whole file; what has to be read from anywhere then goes through a copy.
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


def _loaded(load: Callable[[], bytes]) -> Loader:
    """Read a member now, and give its bytes, or the reason why there are none, when asked."""
    try:
        data = load()
    except OSError:  # of the store, not of the member
        return lambda: _reject(Reason.UNREADABLE)
    except Exception:  # a wrong checksum, an unknown compression, a password: one file's fault
        return lambda: _reject(Reason.UNDECODABLE)
    return lambda: data


def _reject(reason: Reason) -> bytes:
    raise Rejected(reason)


def _zip_members(file: Any) -> Iterator[tuple[str, Callable[[], bytes]]]:  # noqa: ANN401
    with zipfile.ZipFile(file) as archive:
        for path, member in _zip_files(archive).items():

            def load(member: zipfile.ZipInfo = member) -> bytes:
                with archive.open(member) as opened:
                    return opened.read(member.file_size)  # no more than was promised: it may be a bomb

            yield path, load


def _zip_files(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Name the members; of two with one name the later counts, as for every unpacker."""
    # Some Windows programs write backslashes, against the standard.
    named = ((_name(member.filename.replace("\\", "/")), member) for member in archive.infolist())
    return {path: member for path, member in named if not path.endswith("/")}


class _Header(tarfile.TarInfo):
    """A header that is damaged or cut is an error anywhere; tarfile takes it for the end of the archive.

    One that says that further headers, of names and times, take megabytes is one, too: they would be read into memory.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in HEADERS and not 0 <= header.size <= MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        if header.size < 0:
            raise tarfile.ReadError("a member of less than no bytes")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _tar_members(file: Any) -> Iterator[tuple[str, Callable[[], bytes]]]:  # noqa: ANN401
    with _opened_tar(file) as archive:
        for member in _tar_files(archive):

            def load(member: tarfile.TarInfo = member) -> bytes:
                opened = archive.extractfile(member)
                assert opened is not None, "links are not asked for"
                return opened.read()

            yield _name(member.name), load


class _Bounded:
    """A tar that is read from front to back, no further than it goes and than it packs.

    tarfile skips a member by reading on, and would do so for as long as a header says, up to 2**63 bytes.
    """

    def __init__(self, file: Any) -> None:  # noqa: ANN401
        self.file, self.in_vain, self.taken = file, 0, 0
        self.archive: Any = None

    def read(self, size: int) -> bytes:
        data: bytes = self.file.read(size)
        self.taken += len(data)
        self.in_vain = 0 if data else self.in_vain + 1
        if self.in_vain > READS_IN_VAIN:
            raise tarfile.ReadError("it ends before a member does")
        if self.archive:
            _check_expansion(self.archive.fileobj.pos, self.taken)
        return data


@contextmanager
def _opened_tar(file: Any) -> Iterator[tarfile.TarFile]:  # noqa: ANN401
    bounded: Any = _Bounded(file)
    with tarfile.open(fileobj=bounded, mode="r|*", tarinfo=_Header) as archive:
        bounded.archive = archive
        yield archive


def _tar_files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Walk the members, in bounded memory."""
    while member := archive.next():
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
        yield member


def _check_expansion(unpacked: int, packed: int) -> None:
    """Refuse an archive that unpacks to many times its size, which no pictures do.

    Raises:
        ValueError: it does.
    """
    if unpacked > max(MOST_UNPACKED_BYTES, MOST_TIMES * packed):
        raise ValueError(f"it unpacks to {unpacked:,} bytes and more from {packed:,}")


def _name(member: str) -> str:
    return layout.storable(member).removeprefix("./")


def list_archive(
    spec: params.Source,
    store: Any,  # noqa: ANN401
    root: str,
    stamp: str,
    scan: Scan,
    known: Known,
) -> Archive:
    """List an archive, from memory where its stamp is still the same.

    Raises:
        SourceError: it is damaged, or no archive.
    """
    members = scan.listing(spec.path, stamp)
    if members is None:
        is_zip = root.lower().endswith(".zip")
        try:
            with _opened(store, root, is_zip) as file:
                members = _zip_listing(file) if is_zip else _tar_listing(file, stamp)
        except Exception as error:  # zipfile and tarfile let through whatever a damaged byte led to
            if isinstance(error, PermissionError) or is_unavailable(error):  # of the store, not of the archive
                raise
            raise SourceError(f"ingest.sources: {spec.path} is not a readable archive: {error}") from None
        scan.remember_listing(spec.path, stamp, members)
    safe = {path: member for path, member in members.items() if member and not layout.is_unsafe(path)}
    stamps = {path: f"{size}:{change}" for path, (size, change) in safe.items()}
    read = layouts.read(stamps, spec, known)
    items = layout.without_huge(read.arranged.items, lambda path: safe[path][0])
    for path in members.keys() - safe.keys():
        if not is_litter(path) and not path.endswith("/"):
            items.append(Item(path, "", spec.domain, SPLITS, stamp, Reason.UNSAFE_PATH))
    items.sort(key=lambda item: item.path)
    return Archive(store, root, items, read.arranged.notes, read.layout, read.arranged.empty)


def _zip_listing(file: Any) -> Members:  # noqa: ANN401
    """List the members with size and checksum; None marks what is not a plain file (a link stored in a zip).

    Folders are there, too, by names that end in a slash: a class may hold nothing.
    """
    _check_index(file)
    with zipfile.ZipFile(file) as archive:
        packed = {member.header_offset: member.compress_size for member in archive.infolist()}
        _check_expansion(sum(member.file_size for member in archive.infolist()), sum(packed.values()))
        names = (_name(member.filename.replace("\\", "/")) for member in archive.infolist())
        folders: Members = {name: (0, "") for name in names if name.endswith("/")}
        return folders | {
            path: None if stat.S_ISLNK(member.external_attr >> 16) else (member.file_size, str(member.CRC))
            for path, member in _zip_files(archive).items()
        }


def _check_index(file: Any) -> None:  # noqa: ANN401
    """Refuse a zip of more members than can be listed, before zipfile reads its index.

    Raises:
        ValueError: it is such a zip.
    """
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # size and place of the index, as zipfile reads them
    if end is None:
        return  # zipfile says so
    size = end[zipfile._ECD_SIZE]  # type: ignore[attr-defined]
    if size > MOST_INDEX_BYTES:
        raise ValueError(f"its index takes {size:,} bytes; expected at most {MOST_INDEX_BYTES:,}. Make several of it")
    file.seek(max(0, end[zipfile._ECD_LOCATION] - size - ZIP64_BYTES))  # type: ignore[attr-defined]
    _check_members(file.read(size + ZIP64_BYTES).count(zipfile.stringCentralDir))  # type: ignore[attr-defined]
    file.seek(0)


def _check_members(count: int) -> None:
    if count > MOST_MEMBERS:
        raise ValueError(f"it has more than {MOST_MEMBERS:,} members. Make several of it")


def _tar_listing(file: Any, stamp: str) -> Members:  # noqa: ANN401
    """List the members with size and the archive's stamp, there being no checksum; None marks links and devices."""
    members: Members = {}
    with _opened_tar(file) as archive:
        for member in _tar_files(archive):  # of two with one name the earlier counts: a stream is not read twice
            _check_members(len(members))
            if member.isdir():
                members.setdefault(f"{_name(member.name)}/", (0, ""))
            else:
                members.setdefault(_name(member.name), (member.size, stamp) if member.isfile() else None)
    return members
