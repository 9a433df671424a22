"""Files that are either whole or not there: written under a temporary name, synced, then renamed."""

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
TEMPORARY = ".tmp"  # .dvcignore names it too: what a killed run left never reaches a version


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends well, it becomes `path`, synced to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a write that fails does not say of which file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Replace the file `path` by `content` (text as UTF-8)."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder to fill; when the block ends well, it becomes `path`, or what that links to."""
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
    """Have the system put a file, or a folder's list of names, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(paths: Iterable[Path], also: str = "") -> str:
    """Digest the contents of several files, and a text, into one name."""
    return hashlib.sha256(" ".join([*map(sha256, paths), also]).encode()).hexdigest()


def mark_used(folder: Path, at: float | None = None) -> None:
    """Note that a folder is used, now or at a time in seconds; DVC goes by the times of files alone."""
    os.utime(folder, None if at is None else (at, at))


def last_used(folder: Path) -> float:
    """Recall when a folder was last noted as used, or a file in it came or went, in seconds."""
    return folder.stat().st_mtime


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed run left under `folder`."""
    for left in folder.rglob(f"*{TEMPORARY}"):
        remove(left)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of a file that is not what was written which it is, and what brings it back; for the reading alone.

    Raises:
        DamagedError: the block fails in any way that the file's content can bring about.
    """
    try:
        yield
    except (RootstockError, MemoryError):
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise damaged(path, "is not there" if missing else "is no file, or lies in what is no folder") from error
    except OSError as error:
        if error.errno is not None:  # the disk, or the system: not the file's content
            raise
        raise damaged(path, f"cannot be read ({error})") from error
    except Exception as error:  # each parser has its own errors, and what is missing is one of this language
        text = f"it lacks {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0][:200]
        raise damaged(path, f"is damaged ({text or type(error).__name__})") from error


def damaged(path: Path, why: str) -> DamagedError:
    """Say what is wrong with a file, and what to do."""
    return DamagedError(
        f"{path} {why}. Remove it, and bring it back by `dvc checkout` or `dvc pull`, or run again what makes it."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        DamagedError: it is not there, or holds something else.
    """
    with reading(path):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__} where an object is expected")
    return content


def hold(path: Path, expected: str) -> None:
    """Hold a file to the digest that was written down with it.

    Raises:
        DamagedError: it is another one.
    """
    with reading(path):
        found = sha256(path)
    if found != expected:
        raise damaged(path, "is not the file that was written: its digest is another")


def write_sums(folder: Path) -> None:
    """Write down the digests of all files of a folder in it, as `sha256sum -c` reads them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    write(folder / SUMS, "".join(f"{sha256(path)}  {path.relative_to(folder)}\n" for path in paths))


def hold_sums(folder: Path) -> None:
    """Hold the files of a folder to the digests that were written down; earlier versions wrote none.

    Raises:
        DamagedError: one is another one.
    """
    if not (folder / SUMS).exists():
        return
    with reading(folder / SUMS):
        expected = [line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines()]
        pairs = [(digest, folder / name) for digest, name in expected]
    for digest, path in pairs:
        hold(path, digest)


def read(path: Path | str, most: int, *, folder: int | None = None) -> bytes:
    """Read a plain file, and no more of it than one byte above `most`, however it grows.

    Args:
        path: of the file.
        most: bytes.
        folder: a descriptor of the folder in which it lies under that name; then it is no link.

    Raises:
        OSError: it cannot be read, or is none: a pipe that took its place would keep its reader waiting.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if folder is None else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most + 1)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Digest a file, in hexadecimal, without reading it whole into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
