"""Files of a store: a folder, or a URL of one of the protocols in addresses.py (s3://, gs://, abfs://, sftp://, ...).

What opens a store comes from the environment (AWS_ACCESS_KEY_ID and the like, or fsspec's own FSSPEC_<STORE>_<OPTION>),
never from its URL: that is in params.yaml and in logs.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rootstock.system.addresses import check_protocols
from rootstock.system.errors import SourceError
from rootstock.system.files import TEMPORARY, replacing, sync

# What these put is there whole or not at all, and a rename would be a second copy.
PIECE_BYTES = 2**20  # that are read at once
OBJECTS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "memory"}


def open_store(url: str) -> tuple[Any, str]:
    """Open the store of a URL, chained or not; also gives the place in it.

    Raises:
        ValueError: a protocol in it is none of those that are read, or fsspec does not know it.
        ImportError: its driver is not installed.
    """
    check_protocols(url)
    store, path = fsspec.core.url_to_fs(url)
    return store, path


def read(file: Any, most: int) -> bytes:  # noqa: ANN401
    """Read an open file to its end, or so many bytes; what comes by a network comes in pieces."""
    parts, left = [], most
    while left > 0 and (part := file.read(min(left, PIECE_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def fetch(url: str, name: str, folder: Path) -> Path:
    """Return a local path of a file: its own where the store is a folder of this machine, else a copy.

    Args:
        url: of the store.
        name: of the file in it.
        folder: gets the copy, whole or not at all; one that is there is taken for the same: files in a store are
            written once, and a name never means two contents.

    Raises:
        SourceError: the store cannot be reached, or has no such file.
    """
    with _opened(url) as (store, root):
        if isinstance(store, LocalFileSystem):
            path = Path(root) / name
            if not path.exists():
                raise FileNotFoundError(f"{name} is not there")
            return path
        copy = folder / name
        if not copy.exists():
            with replacing(copy) as temporary:
                store.get_file(f"{root}/{name}", str(temporary))
        return copy


def put(path: Path, url: str) -> None:
    """Copy a local file to a URL, where it is whole or not at all; what is there is replaced.

    Raises:
        SourceError: the store cannot be reached or written to.
    """
    with _opened(url) as (store, target):
        if OBJECTS & ({store.protocol} if isinstance(store.protocol, str) else set(store.protocol)):
            store.put_file(str(path), target)
            return
        # Two workers may be at the same file: each has a temporary name of its own.
        temporary = f"{target}.{socket.gethostname()}-{os.getpid()}{TEMPORARY}"
        store.makedirs(store._parent(target), exist_ok=True)
        try:
            store.put_file(str(path), temporary)
            if isinstance(store, LocalFileSystem):  # others have no word for it
                sync(Path(temporary))
            store.mv(temporary, target)
        except BaseException:
            if store.exists(temporary):
                store.rm_file(temporary)
            raise


def names(url: str, suffix: str = "") -> list[str]:
    """List the files right in a store whose names end with `suffix`, sorted; none where there is no such folder.

    Raises:
        SourceError: the store cannot be reached.
    """
    with _opened(url) as (store, root):
        store.invalidate_cache()  # what other workers have put since
        found = store.ls(root, detail=True) if store.exists(root) else []
        files = (entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "file")
        return sorted(name for name in files if name.endswith(suffix))


def exists(url: str) -> bool:
    """Whether there is a file or folder at a URL.

    Raises:
        SourceError: the store cannot be reached.
    """
    with _opened(url) as (store, path):
        store.invalidate_cache()
        return bool(store.exists(path))


@contextmanager
def _opened(url: str) -> Iterator[tuple[Any, str]]:
    """Open a store; what goes wrong in the block is said of its URL."""
    try:
        store, path = open_store(url)
        yield store, path.rstrip("/")
    except Exception as error:  # every driver has its own errors
        raise SourceError(f"{url}: {type(error).__name__}: {error}") from error
