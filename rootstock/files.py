"""Files that are either whole or not there: written under a temporary name, synced, then renamed."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def sha256(path: Path) -> str:
    """Digest a file, in hexadecimal, without reading it whole into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
