"""List and read the members of a tar in one pass, however it is compressed, in bounded memory."""

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from rootstock.ingest.archive_limits import check_expansion, check_members
from rootstock.ingest.file_names import member_name
from rootstock.ingest.items import Stamps

MAX_EMPTY_READS = 100  # reads that return nothing before a tar counts as truncated
EXTENDED_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
MAX_HEADER_BYTES = 2**20  # of one member's extended headers: long names, times


def list_members(file: Any, stamp: str) -> Stamps:  # noqa: ANN401
    """List the members with their size and what stands for the archive's stamp; links and devices have no stamp.

    A tar has no checksums. What stands for the stamp is short, as it is kept for each member.
    """
    short = hashlib.blake2s(stamp.encode(), digest_size=5).hexdigest() if stamp else ""
    return Stamps.of(_stamped(file, short), first_counts=True)  # as a stream is read once


def _stamped(file: Any, stamp: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    with _opened(file) as archive:
        for count, member in enumerate(_files(archive)):
            check_members(count)
            name = member_name(member.name)
            if member.isdir():
                yield f"{name}/", "0:"
            else:
                yield name, f"{member.size}:{stamp}" if member.isfile() else ""


def members(file: Any) -> Iterator[tuple[str, None, Callable[[], bytes]]]:  # noqa: ANN401
    """Yield the path of each member, no stamp, and a function that returns its bytes, before the next is asked for."""
    with _opened(file) as archive:
        for member in _files(archive):

            def load(member: tarfile.TarInfo = member) -> bytes:
                opened = archive.extractfile(member)
                assert opened is not None, "links are never requested"
                return opened.read()

            yield member_name(member.name), None, load


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
            check_expansion(self.archive.fileobj.pos, self.packed_bytes)
        return data


@contextmanager
def _opened(file: Any) -> Iterator[tarfile.TarFile]:  # noqa: ANN401
    bounded: Any = _BoundedReader(file)
    with tarfile.open(fileobj=bounded, mode="r|*", tarinfo=_Header) as archive:
        bounded.archive = archive
        yield archive


def _files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Iterate over the members in bounded memory."""
    while member := archive.next():
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
        yield member
