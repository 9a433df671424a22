"""Images in plain tar files of about 256 MB: written once, never changed, read by offset or from end to end.

A member is the image's bytes under `<image_id>.<ext>`, its header fields are fixed, and a shard is named after its
number and content, so that equal images in equal order give equal files and a name never means two contents.
"""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from rootstock.system.errors import SourceError
from rootstock.system.files import TEMPORARY, sync

SUFFIX = ".tar"
AT_ONCE = 2**22  # bytes that are written by one call: at each, other threads take their turn and have to be waited for
NAMELESS = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)  # a header: mtime, owner and mode are tarfile's constants
DIGITS = 8  # of the digest in a shard's name
EXTENSION_OF = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "TIFF": "tif",
    "GIF": "gif",
    "PPM": "ppm",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of one image lie."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a shard: its file name there, and where its bytes lie."""

    name: str
    offset: int
    size: int

    @property
    def image_id(self) -> str:
        """Name the image."""
        return self.name.partition(".")[0]


def record(name: str, data: bytes) -> bytes:
    """Give an image's part in the content that a shard is named after."""
    return f"{name} {len(data)} {zlib.crc32(data)}\n".encode()


def header(name: str, size: int) -> bytes:
    """Give the header of a tar member, as tarfile would (tested); of small images, that took half of the packing.

    Args:
        name: of at most 99 letters of ASCII.
        size: of the file, at most 8 GiB.
    """
    block = bytearray(NAMELESS)
    block[: len(name)] = name.encode()
    block[124:135] = b"%011o" % size
    block[148:155] = b" " * 7  # where the sum of all bytes will be
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


class Writer:
    """Writes one shard after another; a shard has its name, and is safe on disk, from `close` on.

    Use as a context manager: leaving it by an error removes the shard that was not finished.
    """

    def __init__(self, folder: Path, number: int, shard_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.number, self.shard_bytes = folder, number, shard_bytes
        self._temporary = folder / f"next{SUFFIX}{TEMPORARY}"
        self._file: BinaryIO | None = None
        self._offset = 0
        self._content = hashlib.sha256()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._file:
                self._file.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def add(self, image_id: str, format: str, data: bytes) -> Place:
        """Append an image to the open shard."""
        if self._file is None:
            self._file = self._temporary.open("wb", buffering=AT_ONCE)
        name = f"{image_id}.{EXTENSION_OF[format]}"
        place = Place(self._offset + tarfile.BLOCKSIZE, len(data))
        self._offset += self._file.write(header(name, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE))
        self._content.update(record(name, data))
        return place

    @property
    def full(self) -> bool:
        """Whether the open shard has reached its size."""
        return self._offset >= self.shard_bytes

    @property
    def empty(self) -> bool:
        """Whether nothing has been added since the last shard was closed."""
        return self._file is None

    def close(self) -> str:
        """Finish the open shard and return its name, `<number>-<digest of its content>`."""
        assert self._file is not None, "nothing was added"
        file, self._file = self._file, None
        with file:
            file.write(bytes(2 * tarfile.BLOCKSIZE))  # the end mark
            file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
        name = f"{self.number:06d}-{self._content.hexdigest()[:DIGITS]}"
        sync(self._temporary)
        self._temporary.replace(path_of(self.folder, name))
        sync(self.folder)
        self.number += 1
        self._offset, self._content = 0, hashlib.sha256()
        return name


def path_of(folder: Path, shard: str) -> Path:
    """Name the file of a shard."""
    return folder / f"{shard}{SUFFIX}"


def names(folder: Path) -> list[str]:
    """List the shards in a folder, in the order in which they were written."""
    return sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"{'[0-9]' * 6}-*{SUFFIX}"))


def number_of(shard: str) -> int:
    """Read a shard's number off its name."""
    return int(shard.partition("-")[0])


def walk(folder: Path, shard: str) -> Iterator[Member]:
    """Walk a shard's headers from end to end, without reading the images.

    Raises:
        SourceError: it is no tar file, or ends too early.
    """
    try:
        with tarfile.open(path_of(folder, shard), "r:") as tar:
            while member := tar.next():
                tar.members = []  # type: ignore[attr-defined]  # it would keep all that it has seen
                yield Member(member.name, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise damaged(folder, shard, str(error)) from error


def members(folder: Path, shard: str) -> Iterator[tuple[str, Place]]:
    """Walk a shard's headers from end to end: image id and place of each."""
    for member in walk(folder, shard):
        yield member.image_id, Place(member.offset, member.size)


@cache
def count(folder: Path, shard: str) -> int:
    """Count a shard's images; of one name, once a process: it never means two contents.

    Raises:
        SourceError: it is no tar file, or ends too early.
    """
    return sum(1 for _ in walk(folder, shard))


def check(folder: Path, shard: str, content: str) -> None:
    """Hold what was read of a shard to its name.

    Args:
        folder: of the shards.
        shard: its name, `<number>-<digest>`.
        content: SHA-256, hexadecimal, of the records of all its images in their order.

    Raises:
        SourceError: it is not what was written.
    """
    if shard.partition("-")[2] != content[:DIGITS]:
        raise damaged(folder, shard, "its bytes are not those that were packed")


@cache
def is_intact(folder: Path, shard: str) -> bool:
    """Whether a shard holds what its name says; of one name, read once a process."""
    content = hashlib.sha256()
    try:
        with path_of(folder, shard).open("rb") as file:
            for member in walk(folder, shard):
                file.seek(member.offset)
                content.update(record(member.name, file.read(member.size)))
    except SourceError:
        return False
    return shard.partition("-")[2] == content.hexdigest()[:DIGITS]


def damaged(folder: Path, shard: str, why: str) -> SourceError:
    """Say what is wrong with a shard, and what to do."""
    return SourceError(
        f"{path_of(folder, shard)}: {why}. Remove it, and bring it back by `dvc checkout` or `dvc pull`; nothing was "
        "written of what it holds."
    )


class Reader:
    """Reads images by place, from any thread; keeps one open file a shard.

    Raises:
        FileNotFoundError: the shard is not there (`dvc pull` brings it).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, int] = {}

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Read the bytes of one image in a single call to the system."""
        descriptor = self._open.get(shard)
        if descriptor is None:
            descriptor = os.open(path_of(self.folder, shard), os.O_RDONLY)
            first = self._open.setdefault(shard, descriptor)  # two threads may have opened it at once
            if first != descriptor:
                os.close(descriptor)
                descriptor = first
        data = os.pread(descriptor, size, offset)
        if len(data) != size:
            raise OSError(
                f"{path_of(self.folder, shard)}: ends before byte {offset + size}; restore it by dvc checkout"
            )
        return data

    def image(self, shard: str, offset: int, size: int, image_id: str) -> bytes:
        """Read the bytes of one image, and hold them to its id, which is their digest.

        What was stored smaller, or brought to eight bits, has the id of the file that came in: then the shard's name,
        which is a digest of all that was packed, vouches for it.

        Raises:
            SourceError: they are not those that were packed.
        """
        try:
            data = self.read(shard, offset, size)
        except OSError as error:
            raise damaged(self.folder, shard, str(error)) from error
        if hashlib.sha256(data).hexdigest() != image_id and not is_intact(self.folder, shard):
            raise damaged(self.folder, shard, f"the bytes at {offset:,} are not those of image {image_id[:12]}")
        return data

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
