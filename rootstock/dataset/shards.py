"""Shards: immutable tar files of about 256 MB that hold the images, read by offset or sequentially.

A member is an image's bytes under `<image_id>.<ext>`. Header fields are fixed and a shard's name is its number and a
digest of its content, so the same images in the same order give identical files, and a name never has two contents.
"""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import FileIO
from pathlib import Path
from types import TracebackType

from rootstock.dataset.tar_headers import Member as Member, header, padded, read_header
from rootstock.system.errors import SourceError
from rootstock.system.files import TEMPORARY, sync

SUFFIX = ".tar"
WRITE_BYTES = 2**22  # at once: each write releases the GIL and then waits for other threads
MOST_OPEN = 400  # files of a reader: a process may have 1,024, several readers among them
MOST_PARTS = 1000  # of a write; Linux allows 1,024
DIGITS = 8  # of the digest in a shard's name, hexadecimal
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
    """The position of one image's bytes in a shard."""

    offset: int
    size: int


def record(name: str, data: bytes | memoryview, checksum: int | None = None) -> bytes:
    """Return an image's contribution to the digest in a shard's name; a known checksum (CRC-32) is not computed."""
    return f"{name} {len(data)} {zlib.crc32(data) if checksum is None else checksum}\n".encode()


class Writer:
    """Writes one shard after another; `close` names a shard and syncs it to disk.

    Use as a context manager: it removes an unfinished shard on exit.
    """

    def __init__(self, folder: Path, number: int, shard_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.number, self.shard_bytes = folder, number, shard_bytes
        self._temporary = folder / f"next{SUFFIX}{TEMPORARY}"
        self._file: FileIO | None = None
        self._waiting: list[bytes | memoryview] = []  # to be written; joining or buffering them would copy every image
        self._offset = self._written = 0
        self._content = hashlib.sha256()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._file:
                self._file.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def add(self, image_id: str, format: str, data: bytes | memoryview, checksum: int | None = None) -> Place:
        """Append an image to the open shard and return its position.

        Args:
            image_id: of the image.
            format: of `data`, as Pillow calls it.
            data: the file.
            checksum: its CRC-32, if it has been computed on another thread.
        """
        if self._file is None:
            self._file = self._temporary.open("w+b", buffering=0)
        name = f"{image_id}.{EXTENSION_OF[format]}"
        place = Place(self._offset + tarfile.BLOCKSIZE, len(data))
        self._append(header(name, len(data)), data, bytes(padded(len(data)) - len(data)))
        if self._offset - self._written >= WRITE_BYTES or len(self._waiting) >= MOST_PARTS:
            self._write(self._file)
        self._content.update(record(name, data, checksum))
        return place

    def read(self, offset: int, size: int) -> bytes:
        """Read the bytes of an image of the open shard."""
        assert self._file is not None, "nothing was added"
        self._write(self._file)
        return os.pread(self._file.fileno(), size, offset)

    def _append(self, *parts: bytes | memoryview) -> None:
        self._waiting += parts
        self._offset += sum(map(len, parts))

    def _write(self, file: FileIO) -> None:
        """Write what is waiting in one system call, or more if the disk takes less at a time."""
        parts = [part for part in self._waiting if part]
        while parts:
            count = os.writev(file.fileno(), parts[:MOST_PARTS])
            self._written += count
            while parts and count >= len(parts[0]):
                count -= len(parts.pop(0))
            if count:
                parts[0] = memoryview(parts[0])[count:]
        self._waiting = []

    @property
    def full(self) -> bool:
        """Whether the open shard has reached its size."""
        return self._offset >= self.shard_bytes

    @property
    def empty(self) -> bool:
        """Whether the open shard contains no image yet."""
        return self._file is None

    def close(self) -> str:
        """Finish the open shard and return its name, `<number>-<digest of its content>`."""
        assert self._file is not None, "nothing was added"
        file, self._file = self._file, None
        with file:
            self._append(bytes(2 * tarfile.BLOCKSIZE))  # the end-of-archive marker
            self._append(bytes(-self._offset % tarfile.RECORDSIZE))
            self._write(file)
        name = f"{self.number:06d}-{self._content.hexdigest()[:DIGITS]}"
        sync(self._temporary)
        self._temporary.replace(path_of(self.folder, name))
        sync(self.folder)
        self.number += 1
        self._offset, self._written, self._content = 0, 0, hashlib.sha256()
        return name


def path_of(folder: Path, shard: str) -> Path:
    """Return the path of a shard."""
    return folder / f"{shard}{SUFFIX}"


def names(folder: Path) -> list[str]:
    """Return the names of the shards in a folder, in the order in which they were written."""
    return sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"{'[0-9]' * 6}-*{SUFFIX}"))


def number_of(shard: str) -> int:
    """Return the number in a shard's name."""
    return int(shard.partition("-")[0])


def iter_members(folder: Path, shard: str) -> Iterator[Member]:
    """Yield the members of a shard from its headers, without reading the images.

    Raises:
        SourceError: it is not a tar file, or is truncated.
    """
    with path_of(folder, shard).open("rb") as file:
        at, size = 0, os.fstat(file.fileno()).st_size
        while member := read_header(os.pread(file.fileno(), tarfile.BLOCKSIZE, at), at, size):
            yield member
            at = member.offset + padded(member.size)
        file.seek(at)  # what follows is the end, or is not ours, or is damaged: tarfile decides
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while other := tar.next():
                    tar.members = []  # type: ignore[attr-defined]  # else it would keep all members in memory
                    yield Member(other.name, other.offset_data, other.size)
        except tarfile.TarError as error:
            raise damaged_error(folder, shard, str(error)) from error


def iter_places(folder: Path, shard: str) -> Iterator[tuple[str, Place]]:
    """Yield the id and position of each image in a shard."""
    for member in iter_members(folder, shard):
        yield member.image_id, Place(member.offset, member.size)


@cache
def count_images(folder: Path, shard: str) -> int:
    """Return the number of images in a shard; cached, since a name never has two contents.

    Raises:
        SourceError: it is not a tar file, or is truncated.
    """
    return sum(1 for _ in iter_members(folder, shard))


def verify(folder: Path, shard: str, content: str) -> None:
    """Check the digest of what was read of a shard against its name.

    Args:
        folder: of the shards.
        shard: its name, `<number>-<digest>`.
        content: hexadecimal SHA-256 of the records of all its images, in order.

    Raises:
        SourceError: the digests differ.
    """
    if shard.partition("-")[2] != content[:DIGITS]:
        raise damaged_error(folder, shard, "its content does not match the digest in its name")


@cache
def is_intact(folder: Path, shard: str) -> bool:
    """Whether the content of a shard matches its name; each shard is read once per process."""
    content = hashlib.sha256()
    try:
        with path_of(folder, shard).open("rb") as file:
            for member in iter_members(folder, shard):
                file.seek(member.offset)
                content.update(record(member.name, file.read(member.size)))
    except SourceError:
        return False
    return shard.partition("-")[2] == content.hexdigest()[:DIGITS]


def damaged_error(folder: Path, shard: str, why: str) -> SourceError:
    """Return the error for a damaged shard: what is wrong with it, and what to do."""
    return SourceError(
        f"{path_of(folder, shard)}: {why}. Remove it and restore it with `dvc checkout` or `dvc pull`; nothing derived "
        "from it was written."
    )


class Reader:
    """Reads images by position; thread-safe, keeps one open file per shard, of very many shards of some.

    Raises:
        FileNotFoundError: the shard is missing (`dvc pull` restores it).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, int] = {}

    def __reduce__(self) -> tuple[Callable[[Path], "Reader"], tuple[Path]]:
        """In another process there is one for each folder, with files of its own."""
        return _reader_here, (self.folder,)

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Read the bytes of one image in a single system call."""
        descriptor = self._open.get(shard)
        if descriptor is None:
            descriptor = os.open(path_of(self.folder, shard), os.O_RDONLY)
            if len(self._open) >= MOST_OPEN:  # those stay open: another thread may be reading from one
                with os.fdopen(descriptor, "rb", buffering=0):
                    return self._pread(descriptor, shard, offset, size)
            first = self._open.setdefault(shard, descriptor)  # two threads may have opened it concurrently
            if first != descriptor:
                os.close(descriptor)
                descriptor = first
        return self._pread(descriptor, shard, offset, size)

    def _pread(self, descriptor: int, shard: str, offset: int, size: int) -> bytes:
        data = os.pread(descriptor, size, offset)
        if len(data) != size:
            raise OSError(
                f"{path_of(self.folder, shard)}: ends before byte {offset + size:,}; restore it with `dvc checkout`"
            )
        return data

    def image(self, shard: str, offset: int, size: int, image_id: str) -> bytes:
        """Read the bytes of one image and verify them against its id, their digest.

        A downscaled image, or one converted to eight bits, has the id of the original file; then the digest in the
        shard's name is verified instead.

        Raises:
            SourceError: the digests differ.
        """
        try:
            data = self.read(shard, offset, size)
        except OSError as error:
            raise damaged_error(self.folder, shard, str(error)) from error
        if hashlib.sha256(data).hexdigest() != image_id and not is_intact(self.folder, shard):
            raise damaged_error(self.folder, shard, f"the bytes at {offset:,} are not those of image {image_id[:12]}")
        return data

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@cache
def _reader_here(folder: Path) -> Reader:
    return Reader(folder)
