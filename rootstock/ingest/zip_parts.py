"""Open a zip of any number of members in bounded memory: in parts, each with an index of a few thousand of them.

zipfile keeps an object of half a kilobyte for each member of an index. A part is the same file, ending in a piece of
its index and an end record for that, so that all parsing and checking is zipfile's. Only overlaps of members are not
seen where they are in different parts.
"""

import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rootstock.ingest.archive_limits import check_members

MAX_INDEX_BYTES = 2**28  # of a zip's index: 128 per member
PIECE_BYTES = 2**18  # of an index: more than an entry can have, with 64 KiB each of name, extra field and comment

# APPNOTE.TXT, the format's specification: 4.3.12 an entry of the index, 4.3.14 to 16 the records at the end.
ENTRY = struct.Struct("<4s24x3H12x")  # signature, lengths of name, extra field and comment
END64, LOCATOR = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
END64_SIGNATURE = b"PK\6\6"
END = b"PK\5\6" + b"\0" * 4 + b"\xff" * 12 + b"\0" * 2  # all of it in the 64-bit record


@dataclass
class _File:
    """The first bytes of a file, and others instead of the rest."""

    file: Any
    length: int
    rest: bytes
    position: int = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length + len(self.rest)}
        self.position = max(origin[whence] + offset, 0)
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes, all that are left if it is below 0 or more than that."""
        end = self.length + len(self.rest) if size < 0 else self.position + size
        data = b""
        if self.position < self.length:
            self.file.seek(self.position)
            data = self.file.read(min(end, self.length) - self.position)
        data += self.rest[max(self.position - self.length, 0) : max(end - self.length, 0)]
        self.position += len(data)
        return data


def open_parts(file: Any) -> Iterator[zipfile.ZipFile]:  # noqa: ANN401
    """Yield a zip again and again, each time with the next members of its index, until all were there.

    Args:
        file: for random access; it is not closed.

    Raises:
        ValueError: there are too many members.
        zipfile.BadZipFile: it is damaged, or no zip.
    """
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # as zipfile itself looks for it
    if end is None:
        raise zipfile.BadZipFile("File is not a zip file")
    signature, size, offset, location = (
        end[getattr(zipfile, f"_ECD_{name}")] for name in ("SIGNATURE", "SIZE", "OFFSET", "LOCATION")
    )
    if size > MAX_INDEX_BYTES:
        raise ValueError(f"its index takes {size:,} bytes; expected at most {MAX_INDEX_BYTES:,}. Split it")
    # Of a 64-bit zip, Python says where the short end record is; since the end of 2025, where the long one is.
    file.seek(location)
    if signature == END64_SIGNATURE and file.read(4) != END64_SIGNATURE:
        location -= END64.size + LOCATOR.size
    start = location - size
    if start < 0:
        raise zipfile.BadZipFile("Bad offset for central directory")
    for piece in _pieces(file, start, size):
        end_64 = END64.pack(END64_SIGNATURE, END64.size - 12, 45, 45, 0, 0, 0, 0, len(piece), offset)
        locator = LOCATOR.pack(b"PK\6\7", 0, offset + len(piece), 1)  # as the index says, whatever is before the zip
        yield zipfile.ZipFile(_File(file, start, piece + end_64 + locator + END))


def _pieces(file: Any, start: int, size: int) -> Iterator[bytes]:  # noqa: ANN401
    """Yield an index in pieces of whole entries; what cannot be divided is the last piece, for zipfile to reject."""
    position, end, members = start, start + size, 0
    while position < end:
        file.seek(position)
        data = file.read(min(PIECE_BYTES, end - position))
        whole = 0
        while whole + ENTRY.size <= len(data):
            signature, *lengths = ENTRY.unpack_from(data, whole)
            if signature != zipfile.stringCentralDir:  # type: ignore[attr-defined]
                break
            if (after := whole + ENTRY.size + sum(lengths)) > len(data):
                break
            whole, members = after, members + 1
        check_members(members)
        if not whole:
            yield data
            return
        yield data[:whole]
        position += whole
