"""Reads and writes files of a store: a folder, or a URL of a protocol in addresses.py (s3://, gs://, abfs://, sftp://).

Credentials come from the environment (AWS_ACCESS_KEY_ID and the like, or fsspec's FSSPEC_<STORE>_<OPTION>), never from
the URL, which appears in params.yaml and in logs.
"""

import hashlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rootstock.system.addresses import check_protocols, links
from rootstock.system.errors import SourceError
from rootstock.system.files import TEMPORARY, replacing, sync

PIECE_BYTES = 2**20  # read at a time
# In object stores an upload is atomic, and a rename would be a second copy.
OBJECTS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "memory"}
# Their drivers (paramiko, tarfile) mix up what several threads ask for: a thread waits for ever, or has wrong bytes.
ONE_AT_A_TIME = {"sftp", "ssh", "tar"}
_turn = threading.Lock()
# Of a web server: for a connection, and for the next bytes. An address that does not answer keeps others waiting.
CONNECT_S, SILENT_S = 10.0, 20.0


def open_store(url: str) -> tuple[Any, str]:
    """Open the store of a URL, chained or not; return the file system and the path in it.

    Raises:
        ValueError: a protocol is not supported.
        ImportError: its driver is not installed.
    """
    check_protocols(url)
    if any(link.protocol in ("http", "https") for link in links(url)):
        _bound_waiting()
    store, path = fsspec.core.url_to_fs(url)
    return store, path


@cache
def _bound_waiting() -> None:
    """Have web servers answer in time: by default, any request may take five minutes, however large the file.

    What is set in the environment (FSSPEC_HTTP_...) stays.
    """
    from aiohttp import ClientTimeout  # takes a tenth of a second

    timeout = ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S)
    for protocol in ("http", "https"):
        settings = fsspec.config.conf.setdefault(protocol, {})
        settings["client_kwargs"] = {"timeout": timeout, **settings.get("client_kwargs", {})}


def turn(store: Any) -> AbstractContextManager[Any]:  # noqa: ANN401
    """Wait until this thread may use a store that is no thread's own: some drivers serve one at a time."""
    of_cache = getattr(store, "fs", store)  # what simplecache and filecache are in front of
    return _turn if ONE_AT_A_TIME & (_protocols(store) | _protocols(of_cache)) else nullcontext()


def _protocols(store: Any) -> set[str]:  # noqa: ANN401
    return {store.protocol} if isinstance(store.protocol, str) else set(store.protocol)


def read(file: Any, most: int) -> bytes:  # noqa: ANN401
    """Read at most `most` bytes of an open file, in pieces, since network reads may return fewer bytes."""
    parts, left = [], most
    while left > 0 and (part := file.read(min(left, PIECE_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def fetch(url: str, name: str, folder: Path) -> Path:
    """Return a local path of a file: the file itself if the store is a local folder, else a downloaded copy.

    Args:
        url: of the store.
        name: of the file in it.
        folder: for the copy; an existing copy is reused, since files in a store are never changed.

    Raises:
        SourceError: the store cannot be reached, or has no such file.
    """
    with _opened(url) as (store, root):
        if isinstance(store, LocalFileSystem):
            path = Path(root) / name
            if not path.exists():
                raise FileNotFoundError(f"{name} does not exist")
            return path
        copy = folder / name
        if not copy.exists():
            with replacing(copy) as temporary:
                store.get_file(f"{root}/{name}", str(temporary))
        return copy


def put(path: Path, url: str) -> None:
    """Upload a local file to a URL atomically, replacing an existing file.

    Raises:
        SourceError: the store cannot be reached or written to.
    """
    with _opened(url) as (store, target):
        if OBJECTS & _protocols(store):
            store.put_file(str(path), target)
            return
        # Two workers may write the same file: each uses its own temporary name.
        temporary = f"{target}.{socket.gethostname()}-{os.getpid()}{TEMPORARY}"
        store.makedirs(store._parent(target), exist_ok=True)
        try:
            store.put_file(str(path), temporary)
            if isinstance(store, LocalFileSystem):  # others cannot sync
                sync(Path(temporary))
            store.mv(temporary, target)
        except BaseException:
            if store.exists(temporary):
                store.rm_file(temporary)
            raise


@contextmanager
def written_here(url: str, folder: Path) -> Iterator[Path]:
    """Yield a local path for what is to be written to a URL; after the block it is uploaded, and removed here.

    Args:
        url: of a file; of a local one, its own path is yielded.
        folder: for the local file, whose name depends on the URL alone.

    Raises:
        SourceError: the store cannot be reached, or does not allow writing; the local file stays.
    """
    if url.startswith(("http://", "https://")):
        raise SourceError(f"{url}: nothing can be written there by HTTP; expected a folder, or a store such as s3://.")
    with _opened(url) as (store, path):
        is_local = isinstance(store, LocalFileSystem)
    if is_local:
        yield Path(path) if "://" in url else Path(url)
        return
    own = folder / hashlib.sha256(url.encode()).hexdigest()[:16]
    own.mkdir(parents=True, exist_ok=True)
    local = own / path.rpartition("/")[2]
    yield local
    try:
        put(local, url)
    except SourceError as error:
        raise SourceError(f"{error} What was to be uploaded is {local}.") from error
    shutil.rmtree(own)


def names(url: str, suffix: str = "") -> list[str]:
    """Return the sorted names of files directly in a store that end with `suffix`; empty if it does not exist.

    Raises:
        SourceError: the store cannot be reached.
    """
    with _opened(url) as (store, root):
        store.invalidate_cache()  # other workers may have added files
        found = store.ls(root, detail=True) if store.exists(root) else []
        files = (entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "file")
        return sorted(name for name in files if name.endswith(suffix))


def exists(url: str) -> bool:
    """Whether a file or folder exists at a URL.

    Raises:
        SourceError: the store cannot be reached.
    """
    with _opened(url) as (store, path):
        store.invalidate_cache()
        return bool(store.exists(path))


@contextmanager
def _opened(url: str) -> Iterator[tuple[Any, str]]:
    """Open a store; errors in the block are raised as SourceError with its URL."""
    try:
        store, path = open_store(url)
        yield store, path.rstrip("/")
    except Exception as error:  # every driver raises its own errors
        raise SourceError(f"{url}: {type(error).__name__}: {error}") from error
