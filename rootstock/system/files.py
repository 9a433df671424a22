"""Atomic file writes (temporary name, sync, rename) and verification of files by digest."""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rootstock.system.errors import DamagedError, RootstockError

SUMS = "sha256sums"
TEMPORARY = ".tmp"  # also in .dvcignore, so that leftovers of a killed run are never versioned


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; if the block succeeds, it becomes `path`, synced to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a failed write does not name its file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to `path`, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; if the block succeeds, it replaces `path`, or the target if that is a link."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(paths: Iterable[Path], also: str = "") -> str:
    """Return one SHA-256 of the contents of several files and a text."""
    return hashlib.sha256(" ".join([*map(sha256, paths), also]).encode()).hexdigest()


def mark_used(folder: Path, at: float | None = None) -> None:
    """Set the mtime of a folder to now or `at` (seconds) to mark it as used; DVC ignores folder mtimes."""
    os.utime(folder, None if at is None else (at, at))


def last_used(folder: Path) -> float:
    """Return when a folder was last marked as used, or its entries changed, in seconds."""
    return folder.stat().st_mtime


def sweep(folder: Path) -> None:
    """Remove temporary files that a killed run left under `folder`."""
    for left in folder.rglob(f"*{TEMPORARY}"):
        remove(left)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_others(folder: Path) -> None:
    """Remove what is beside a folder, which need not exist: it was kept for work that is not this one."""
    for other in folder.parent.iterdir() if folder.parent.exists() else ():
        if other != folder:
            remove(other)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise a `DamagedError` that names `path` if its content makes the block fail; put only the reading inside.

    Raises:
        DamagedError: the file is missing or its content is invalid.
    """
    try:
        yield
    except (RootstockError, MemoryError):
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise damaged(path, "is missing" if missing else "is not a file, or its parent is not a folder") from error
    except OSError as error:
        if error.errno is not None:  # an error of the operating system, not of the content
            raise
        raise damaged(path, f"cannot be read ({error})") from error
    except Exception as error:  # each parser raises its own errors, KeyError for a missing key
        text = f"{error} is missing" if isinstance(error, KeyError) else str(error).partition("\n")[0][:200]
        raise damaged(path, f"is damaged ({text or type(error).__name__})") from error


def damaged(path: Path, why: str) -> DamagedError:
    """Return the error for a damaged file: what is wrong with it, and what to do."""
    return DamagedError(
        f"{path} {why}. Remove it and restore it with `dvc checkout` or `dvc pull`, or re-run the stage that writes it."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        DamagedError: it is missing or contains something else.
    """
    with reading(path):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"it contains a {type(content).__name__}, expected an object")
    return content


def verify(path: Path, expected: str) -> None:
    """Check a file against its recorded SHA-256.

    Raises:
        DamagedError: the digests differ.
    """
    with reading(path):
        found = sha256(path)
    if found != expected:
        raise damaged(path, "is not the file that was written: its digest differs")


def write_sums(folder: Path) -> None:
    """Write the digests of all files of a folder into it, in the format of `sha256sum -c`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    write(folder / SUMS, "".join(f"{sha256(path)}  {path.relative_to(folder)}\n" for path in paths))


def verify_sums(folder: Path) -> None:
    """Check the files of a folder against their recorded digests; earlier versions wrote none.

    Raises:
        DamagedError: a digest differs.
    """
    if not (folder / SUMS).exists():
        return
    with reading(folder / SUMS):
        expected = [line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines()]
        pairs = [(digest, folder / name) for digest, name in expected]
    for digest, path in pairs:
        verify(path, digest)


def read(path: Path | str, most: int, *, folder: int | None = None) -> bytes:
    """Read a regular file, at most `most` + 1 bytes of it, so that a caller can tell that it is too large.

    Args:
        path: of the file.
        most: bytes.
        folder: descriptor of the folder that `path` is relative to; then links are refused.

    Raises:
        OSError: it cannot be read or is not a regular file (a pipe would block the reader).
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if folder is None else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(min(status.st_size, most) + 1)  # memory for `most` bytes would be taken for each file
            if status.st_size < len(content) <= most:  # it has grown
                content += file.read(most + 1 - len(content))
            return content
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
