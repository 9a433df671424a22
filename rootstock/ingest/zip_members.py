"""List and read the members of a zip, a few thousand at a time, in the order of its index."""

import os
import stat
import zipfile
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rootstock.ingest.archive_limits import check_expansion
from rootstock.ingest.file_names import member_name
from rootstock.ingest.items import Stamps
from rootstock.ingest.zip_parts import open_parts


def list_members(file: Any) -> Stamps:  # noqa: ANN401
    """List the members with size and checksum; entries that are not regular files, such as links, have no stamp.

    Folders are included, with a trailing slash, since a class folder may be empty. Of two members with the same name
    the later one counts, as in every unpacker.

    Raises:
        ValueError: the index is too large, or the members unpack to many times their size.
    """
    offsets, packed, unpacked = array("q"), array("Q"), array("Q")  # offsets are below 0 where the front is cut off

    def listed() -> Iterator[tuple[str, str]]:
        for part in open_parts(file):
            for info in part.infolist():
                offsets.append(info.header_offset)
                packed.append(info.compress_size)
                unpacked.append(info.file_size)
                yield _path(info), _stamp(info)

    members = Stamps.of(listed())
    check_expansion(sum(unpacked), min(_distinct_bytes(offsets, packed), file.seek(0, os.SEEK_END)))
    return members


def members(file: Any) -> Iterator[tuple[str, str, Callable[[], bytes]]]:  # noqa: ANN401
    """Yield the path and the stamp of each file, and a function that returns its bytes.

    Of two members with the same name, the stamp tells which is listed.
    """
    for part in open_parts(file):
        for info in part.infolist():

            def load(info: zipfile.ZipInfo = info, part: zipfile.ZipFile = part) -> bytes:
                with part.open(info) as opened:
                    return opened.read(info.file_size)  # no more than declared: it may be a zip bomb

            if not (path := _path(info)).endswith("/"):
                yield path, _stamp(info), load


def _distinct_bytes(offsets: "array[int]", packed: "array[int]") -> int:
    """Return the packed size of members that may share bytes: those at the same offset count once, as the smallest."""
    starts, sizes = np.array(offsets, np.int64), np.array(packed, np.uint64)
    order = np.lexsort([sizes, starts])
    first = np.unique(starts[order], return_index=True)[1]
    return int(sizes[order][first].sum())


def _path(info: zipfile.ZipInfo) -> str:
    # Some Windows programs write backslashes, against the standard.
    return member_name(info.filename.replace("\\", "/"))


def _stamp(info: zipfile.ZipInfo) -> str:
    if _path(info).endswith("/"):
        return "0:"
    return "" if stat.S_ISLNK(info.external_attr >> 16) else f"{info.file_size}:{info.CRC}"
