"""List and read the members of a zip. Its index is read whole, by zipfile: half a kilobyte a member."""

import stat
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from rootstock.ingest.archive_limits import check_expansion, check_members
from rootstock.ingest.file_names import member_name
from rootstock.ingest.items import Stamps

MAX_INDEX_BYTES = 2**28  # of a zip's index: 128 per member
ZIP64_BYTES = 76  # the records that may lie between the index and the end record


def list_members(file: Any) -> Stamps:  # noqa: ANN401
    """List the members with size and checksum; entries that are not regular files, such as links, have no stamp.

    Folders are included, with a trailing slash, since a class folder may be empty. Of two members with the same name
    the later one counts, as in every unpacker.

    Raises:
        ValueError: the index is too large, or the members unpack to many times their size.
    """
    _check_index(file)
    with zipfile.ZipFile(file) as archive:
        packed = {info.header_offset: info.compress_size for info in archive.infolist()}  # members may share bytes
        check_expansion(sum(info.file_size for info in archive.infolist()), sum(packed.values()))
        return Stamps.of((_path(info), _stamp(info)) for info in archive.infolist())


def members(file: Any) -> Iterator[tuple[str, str, Callable[[], bytes]]]:  # noqa: ANN401
    """Yield the path and the stamp of each file, and a function that returns its bytes.

    Of two members with the same name, the stamp tells which is listed.
    """
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():

            def load(info: zipfile.ZipInfo = info) -> bytes:
                with archive.open(info) as opened:
                    return opened.read(info.file_size)  # no more than declared: it may be a zip bomb

            if not (path := _path(info)).endswith("/"):
                yield path, _stamp(info), load


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
    check_members(file.read(size + ZIP64_BYTES).count(zipfile.stringCentralDir))  # type: ignore[attr-defined]
    file.seek(0)


def _path(info: zipfile.ZipInfo) -> str:
    # Some Windows programs write backslashes, against the standard.
    return member_name(info.filename.replace("\\", "/"))


def _stamp(info: zipfile.ZipInfo) -> str:
    if _path(info).endswith("/"):
        return "0:"
    return "" if stat.S_ISLNK(info.external_attr >> 16) else f"{info.file_size}:{info.CRC}"
