"""Read zip and tar archives as sources, in member order, without unpacking them to disk.

Listing an archive means reading its index (for a tar, the whole file), so the listing is cached until the archive's
stamp changes.
"""

import heapq
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from rootstock.config import params
from rootstock.images.inspection import Reason, Rejected
from rootstock.ingest import file_names, layout_choice
from rootstock.ingest.items import Item, Items, among
from rootstock.ingest.junk import is_junk
from rootstock.ingest.layout import SPLITS, Loader
from rootstock.ingest.layout_choice import Known
from rootstock.ingest.scan import Members, Scan
from rootstock.system.availability import is_unavailable
from rootstock.system.errors import SourceError

MAX_EMPTY_READS = 100  # reads that return nothing before a tar counts as truncated
EXTENDED_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
MAX_HEADER_BYTES = 2**20  # of one member's extended headers: long names, times
# Limits on the unpacked size, in bytes and as a multiple of the packed size; a bitmap of one colour reaches 1,000.
MAX_UNPACKED_BYTES, MAX_EXPANSION = 2**32, 100
MAX_MEMBERS = 2**21  # each takes a kilobyte of memory while listing, and more later
MAX_INDEX_BYTES = 2**28  # of a zip's index, which is read whole: 128 per member
ZIP64_BYTES = 76  # the records that may lie between the index and the end record


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
        missing = {item.path: item for item in among(self.items, wanted)}
        is_zip = self.root.lower().endswith(".zip")
        try:
            with _open(self.store, self.root, is_zip) as file:
                for path, load in (_zip_members if is_zip else _tar_members)(file) if missing else ():
                    if item := missing.pop(path, None):
                        yield item, _load_now(load)
                    if not missing:
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
    except OSError:  # an error of the store, not of the member
        return lambda: _reject(Reason.UNREADABLE)
    except Exception:  # a wrong checksum, unknown compression, a password: concerns this file only
        return lambda: _reject(Reason.UNDECODABLE)
    return lambda: data


def _reject(reason: Reason) -> bytes:
    raise Rejected(reason)


def _zip_members(file: Any) -> Iterator[tuple[str, Callable[[], bytes]]]:  # noqa: ANN401
    with zipfile.ZipFile(file) as archive:
        for path, member in _zip_files(archive).items():

            def load(member: zipfile.ZipInfo = member) -> bytes:
                with archive.open(member) as opened:
                    return opened.read(member.file_size)  # no more than declared: it may be a zip bomb

            yield path, load


def _zip_files(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Map names to members; of two with the same name the later one counts, as in every unpacker."""
    # Some Windows programs write backslashes, against the standard.
    named = ((_member_name(member.filename.replace("\\", "/")), member) for member in archive.infolist())
    return {path: member for path, member in named if not path.endswith("/")}


class _Header(tarfile.TarInfo):
    """A tar header that raises if it is damaged or truncated; tarfile would take it for the end of the archive.

    It also raises if extended headers claim megabytes, since those would be read into memory.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in EXTENDED_HEADERS and not 0 <= header.size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        if header.size < 0:
            raise tarfile.ReadError("a member of negative size")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end-of-archive marker
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _tar_members(file: Any) -> Iterator[tuple[str, Callable[[], bytes]]]:  # noqa: ANN401
    with _opened_tar(file) as archive:
        for member in _tar_files(archive):

            def load(member: tarfile.TarInfo = member) -> bytes:
                opened = archive.extractfile(member)
                assert opened is not None, "links are never requested"
                return opened.read()

            yield _member_name(member.name), load


class _BoundedReader:
    """A sequential reader of a tar that stops at the end of the file and at implausible expansion.

    tarfile skips a member by reading on for as long as its header claims, up to 2**63 bytes.
    """

    def __init__(self, file: Any) -> None:  # noqa: ANN401
        self.file, self.empty_reads, self.packed_bytes = file, 0, 0
        self.archive: Any = None

    def read(self, size: int) -> bytes:
        data: bytes = self.file.read(size)
        self.packed_bytes += len(data)
        self.empty_reads = 0 if data else self.empty_reads + 1
        if self.empty_reads > MAX_EMPTY_READS:
            raise tarfile.ReadError("it ends in the middle of a member")
        if self.archive:
            _check_expansion(self.archive.fileobj.pos, self.packed_bytes)
        return data


@contextmanager
def _opened_tar(file: Any) -> Iterator[tarfile.TarFile]:  # noqa: ANN401
    bounded: Any = _BoundedReader(file)
    with tarfile.open(fileobj=bounded, mode="r|*", tarinfo=_Header) as archive:
        bounded.archive = archive
        yield archive


def _tar_files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Iterate over the members in bounded memory."""
    while member := archive.next():
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
        yield member


def _check_expansion(unpacked: int, packed: int) -> None:
    """Reject an archive that unpacks to many times its size, which images never do.

    Raises:
        ValueError: it unpacks to more than the limits.
    """
    if unpacked > max(MAX_UNPACKED_BYTES, MAX_EXPANSION * packed):
        raise ValueError(f"its {packed:,} bytes unpack to {unpacked:,} or more")


def _member_name(member: str) -> str:
    return file_names.storable(member).removeprefix("./")


def read_members(store: Any, root: str, stamp: str, where: str) -> Members:  # noqa: ANN401
    """List the members of an archive, or raise a SourceError that begins with `where`."""
    is_zip = root.lower().endswith(".zip")
    try:
        with _open(store, root, is_zip) as file:
            return _zip_listing(file) if is_zip else _tar_listing(file, stamp)
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
    safe = {path: member for path, member in members.items() if member and not file_names.is_unsafe(path)}
    stamps = {path: f"{size}:{change}" for path, (size, change) in safe.items()}
    read = layout_choice.read_paths(stamps, spec, known)
    unsafe = [path for path in members.keys() - safe.keys() if not is_junk(path) and not path.endswith("/")]
    others = [Item(path, "", spec.domain, SPLITS, stamp, Reason.UNSAFE_PATH) for path in sorted(unsafe)]
    items = Items.of(heapq.merge(read.files.items, others, key=attrgetter("path"))) if others else read.files.items
    return Archive(store, root, items, read.files.notes, read.layout, read.files.empty)


def _zip_listing(file: Any) -> Members:  # noqa: ANN401
    """List the members with size and checksum; None marks entries that are not regular files, such as links.

    Folders are included, with a trailing slash, since a class folder may be empty.
    """
    _check_index(file)
    with zipfile.ZipFile(file) as archive:
        packed = {member.header_offset: member.compress_size for member in archive.infolist()}
        _check_expansion(sum(member.file_size for member in archive.infolist()), sum(packed.values()))
        names = (_member_name(member.filename.replace("\\", "/")) for member in archive.infolist())
        folders: Members = {name: (0, "") for name in names if name.endswith("/")}
        return folders | {
            path: None if stat.S_ISLNK(member.external_attr >> 16) else (member.file_size, str(member.CRC))
            for path, member in _zip_files(archive).items()
        }


def _check_index(file: Any) -> None:  # noqa: ANN401
    """Reject a zip with too many members before zipfile reads its index.

    Raises:
        ValueError: it has too many members.
    """
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # size and offset of the index, as zipfile reads them
    if end is None:
        return  # zipfile raises
    size = end[zipfile._ECD_SIZE]  # type: ignore[attr-defined]
    if size > MAX_INDEX_BYTES:
        raise ValueError(f"its index takes {size:,} bytes; expected at most {MAX_INDEX_BYTES:,}. Split it")
    file.seek(max(0, end[zipfile._ECD_LOCATION] - size - ZIP64_BYTES))  # type: ignore[attr-defined]
    _check_members(file.read(size + ZIP64_BYTES).count(zipfile.stringCentralDir))  # type: ignore[attr-defined]
    file.seek(0)


def _check_members(count: int) -> None:
    if count > MAX_MEMBERS:
        raise ValueError(f"it has more than {MAX_MEMBERS:,} members. Split it")


def _tar_listing(file: Any, stamp: str) -> Members:  # noqa: ANN401
    """List the members with size and the archive's stamp (a tar has no checksums); None marks links and devices."""
    members: Members = {}
    with _opened_tar(file) as archive:
        for member in _tar_files(archive):  # of duplicate names the first counts: a stream is read once
            _check_members(len(members))
            if member.isdir():
                members.setdefault(f"{_member_name(member.name)}/", (0, ""))
            else:
                members.setdefault(_member_name(member.name), (member.size, stamp) if member.isfile() else None)
    return members
