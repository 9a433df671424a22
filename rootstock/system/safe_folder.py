"""Reads, moves and removes files inside a local folder and never outside of it, whatever symlinks are put in the way.

Every folder on a path is opened relative to its parent and never through a link: between a check of a path and its use,
somebody could replace a part of it (a time-of-check to time-of-use race).
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, count
from pathlib import Path, PurePosixPath
from types import TracebackType

from rootstock.system.files import read

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
IN_THE_WAY = (errno.ELOOP, errno.ENOTDIR, errno.ENOENT)  # a link, a file instead of a folder, or nothing


class SafeFolder:
    """A folder whose files are accessed without following links; use as a context manager."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, FOLDER)

    def __enter__(self) -> "SafeFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._root)

    def read(self, path: str, most: int) -> bytes:
        """Read a regular file, at most `most` + 1 bytes of it.

        Raises:
            OSError: it cannot be read, is not a regular file, or lies behind a link.
        """
        with self._folder(path) as folder:
            return read(PurePosixPath(path).name, most, folder=folder)

    def remove(self, path: str, size: int, mtime_ns: int) -> bool:
        """Remove a file if its size and mtime are unchanged; return whether it was removed."""
        with self._file(path, size, mtime_ns) as folder:
            if folder is None:
                return False
            os.unlink(PurePosixPath(path).name, dir_fd=folder)
            return True

    def move(self, path: str, target: str, size: int, mtime_ns: int) -> bool:
        """Move a file to a free name like `target` if size and mtime are unchanged; return whether it was moved."""
        with self._file(path, size, mtime_ns) as folder:
            if folder is None:
                return False
            with self._folder(target, make=True) as to:
                free = _take_free_name(PurePosixPath(target), to)
                try:
                    os.rename(PurePosixPath(path).name, free, src_dir_fd=folder, dst_dir_fd=to)
                except BaseException:
                    os.unlink(free, dir_fd=to)
                    raise
            return True

    @contextmanager
    def _file(self, path: str, size: int, mtime_ns: int) -> Iterator[int | None]:
        """Open the folder of a file; yield None if the file is gone, not a regular file, or has changed."""
        with ExitStack() as opened:
            folder: int | None = None
            try:
                at = opened.enter_context(self._folder(path))
                about = os.stat(PurePosixPath(path).name, dir_fd=at, follow_symlinks=False)
                if stat.S_ISREG(about.st_mode) and (about.st_size, about.st_mtime_ns) == (size, mtime_ns):
                    folder = at
            except OSError as error:
                if error.errno not in IN_THE_WAY:
                    raise
            yield folder

    @contextmanager
    def _folder(self, path: str, *, make: bool = False) -> Iterator[int]:
        """Open the folder of a path, one component at a time."""
        at = os.dup(self._root)
        try:
            for part in PurePosixPath(path).parts[:-1]:
                if part == "..":
                    raise OSError(errno.ENOTDIR, "leads out of the folder", path)
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=at)
                below = os.open(part, FOLDER, dir_fd=at)
                os.close(at)
                at = below
            yield at
        finally:
            os.close(at)


def _take_free_name(target: PurePosixPath, folder: int) -> str:
    """Reserve a free name by creating an empty file, which the caller replaces."""
    for name in chain([target.name], (f"{target.stem}-{number}{target.suffix}" for number in count(2))):
        with suppress(FileExistsError):
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder))
            return name
    raise AssertionError("unreachable: there is always another number")
