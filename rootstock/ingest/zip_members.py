"""List and read the members of a zip, some at a time: of all of them, zipfile would keep a kilobyte each."""

import io
import stat
import struct
import zipfile
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rootstock.ingest.archive_limits import check_expansion, check_members
from rootstock.ingest.file_names import member_name
from rootstock.ingest.items import ROWS, Stamps

MAX_INDEX_BYTES = 2**28  # of a zip's index, which is read whole: 128 per member
ZIP64_BYTES = 76  # the records that may lie between the index and the end record
ENTRY_BYTES = 46  # of the index, before the name, the extra field and the comment
LENGTHS_AT, LENGTHS = 28, "<3H"  # of those three, in an entry
OFFSET_AT, BEYOND = 42, 2**32 - 1  # where the member begins, in an entry; or that it says so in its extra field
END = "<4s4H2LH"  # the end record


def list_members(file: Any) -> Stamps:  # noqa: ANN401
    """List the members with size and checksum; entries that are not regular files, such as links, have no stamp.

    Folders are included, with a trailing slash, since a class folder may be empty. Of two members with the same name
    the later one counts, as in every unpacker.
    """
    offsets, packed = array("q"), array("Q")
    unpacked = 0

    def stamped() -> Iterator[tuple[str, str]]:
        nonlocal unpacked
        for info in Index(file).infos():
            offsets.append(info.header_offset)
            packed.append(info.compress_size)
            unpacked += info.file_size
            yield _path(info), _stamp(info)

    found = Stamps.of(stamped())
    _, rows = np.unique(np.array(offsets, np.int64)[::-1], return_index=True)  # members may share their bytes
    check_expansion(unpacked, sum(packed[-1 - row] for row in rows.tolist()))
    return found


def members(file: Any) -> Iterator[tuple[str, str, Callable[[], bytes]]]:  # noqa: ANN401
    """Yield the path and the stamp of each file, and a function that returns its bytes.

    Of two members with the same name, the stamp tells which is listed.
    """
    index = Index(file)
    with _Unlisted(file) as archive:
        for info in index.infos():

            def load(info: zipfile.ZipInfo = info) -> bytes:
                with archive.open(info) as opened:
                    return opened.read(info.file_size)  # no more than declared: it may be a zip bomb

            if not (path := _path(info)).endswith("/"):
                yield path, _stamp(info), load


def _path(info: zipfile.ZipInfo) -> str:
    # Some Windows programs write backslashes, against the standard.
    return member_name(info.filename.replace("\\", "/"))


def _stamp(info: zipfile.ZipInfo) -> str:
    if _path(info).endswith("/"):
        return "0:"
    return "" if stat.S_ISLNK(info.external_attr >> 16) else f"{info.file_size}:{info.CRC}"


class _Unlisted(zipfile.ZipFile):
    """An opened zip that does not read its index."""

    def _RealGetContents(self) -> None:  # noqa: N802 - zipfile's
        pass


class Index:
    """The index of a zip, as bytes.

    Raises:
        ValueError: it is too large, or has too many members.
    """

    def __init__(self, file: Any) -> None:  # noqa: ANN401
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # size and offset, as zipfile reads them
        if end is None:
            raise zipfile.BadZipFile("File is not a zip file")
        size = end[zipfile._ECD_SIZE]  # type: ignore[attr-defined]
        if size > MAX_INDEX_BYTES:
            raise ValueError(f"its index takes {size:,} bytes; expected at most {MAX_INDEX_BYTES:,}. Split it")
        begin = end[zipfile._ECD_LOCATION] - size  # type: ignore[attr-defined]
        if end[zipfile._ECD_SIGNATURE] == zipfile.stringEndArchive64:  # type: ignore[attr-defined]
            begin -= ZIP64_BYTES
        if begin < 0:
            raise zipfile.BadZipFile("Bad offset for central directory")
        self._shift = begin - end[zipfile._ECD_OFFSET]  # type: ignore[attr-defined]  # by what lies before the zip
        file.seek(begin)
        self._entries: bytes = file.read(size)
        check_members(self._entries.count(zipfile.stringCentralDir))  # type: ignore[attr-defined]
        self._begin = begin

    def infos(self) -> Iterator[zipfile.ZipInfo]:
        """Yield what the index says of each member: zipfile reads a part of it as that of a zip without contents."""
        begins = self._begins()
        for part in self._parts():
            end = struct.pack(END, zipfile.stringEndArchive, 0, 0, 0, 0, len(part), 0, 0)  # type: ignore[attr-defined]
            with zipfile.ZipFile(io.BytesIO(part + end)) as some:
                for info in some.infolist():
                    info.header_offset += self._shift
                    if hasattr(info, "_end_offset"):  # newer Pythons reject a member that reaches into the next one
                        next_one = bisect_right(begins, info.header_offset)
                        info._end_offset = begins[next_one] if next_one < len(begins) else self._begin
                    yield info

    def _parts(self) -> Iterator[bytes]:
        """Yield the entries, some at a time; what is no entry is in the last part, of which zipfile says so."""
        begin = 0
        for count, (_, after) in enumerate(self._spans(), 1):
            if count % ROWS == 0:
                yield self._entries[begin:after]
                begin = after
        if begin < len(self._entries):
            yield self._entries[begin:]

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Yield where each entry begins and ends."""
        at, signature = 0, zipfile.stringCentralDir  # type: ignore[attr-defined]
        while at + ENTRY_BYTES <= len(self._entries) and self._entries.startswith(signature, at):
            begin, at = at, at + ENTRY_BYTES + sum(struct.unpack_from(LENGTHS, self._entries, at + LENGTHS_AT))
            yield begin, at

    def _begins(self) -> "array[int]":
        """Return where members begin, in order; those beyond 4 GiB are told elsewhere, and left out."""
        found = (struct.unpack_from("<L", self._entries, at + OFFSET_AT)[0] for at, _ in self._spans())
        below = np.fromiter((offset for offset in found if offset < BEYOND), np.int64) + self._shift
        return array("q", np.sort(below).tobytes())
