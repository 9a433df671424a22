"""Downloads large files: once, verified by digest, and resumed after a broken connection."""

import re
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from filelock import FileLock

from rootstock.system import files, progress
from rootstock.system.stores import open_store

RETRY_AFTER_S: tuple[float, ...] = (1, 2, 4)
TIMEOUT_S = 30
CHUNK_BYTES = 2**20
PART = ".part"


class DamagedError(OSError):
    """The downloaded bytes do not match the expected digest."""


def fetch(url: str, target: Path, sha256: str | None) -> Path:
    """Download a file unless `target` exists; then no request is sent.

    Args:
        url: http, https, or any URL that fsspec supports.
        target: path of the complete file; a partial download lies beside it with the suffix `.part`.
        sha256: expected digest or its first digits, in hexadecimal; None to skip verification.

    Raises:
        OSError: the download failed; `DamagedError` if the digest does not match.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        if target.exists():
            _check(target, sha256)
            return target
        part = target.with_name(target.name + PART)
        waits = iter(RETRY_AFTER_S)
        while True:
            resumed = part.exists()
            try:
                _append(url, part)
                _check(part, sha256)
                break
            except (OSError, HTTPException) as error:
                damaged = isinstance(error, DamagedError)
                if damaged or _is_unsatisfiable(error):
                    part.unlink(missing_ok=True)
                wait = next(waits, None)
                if wait is None or not (resumed if damaged else _may_pass(error)):
                    raise
            time.sleep(wait)
        files.sync(part)
        part.replace(target)
    return target


def _append(url: str, part: Path) -> None:
    """Download the missing rest of a partial file."""
    have = part.stat().st_size if part.exists() else 0
    with _opened(url, have) as (source, begins, total), part.open("r+b" if begins else "wb") as sink:
        sink.seek(begins)
        missing = -(-(total - begins) // CHUNK_BYTES) if total else 0
        with progress.bar("download", missing, "MB") as advance:
            while chunk := source.read(CHUNK_BYTES):
                sink.write(chunk)
                advance(1)
        got = sink.tell()
    if total and got < total:
        raise ConnectionError(f"the connection was lost after {got:,} of {total:,} bytes")


@contextmanager
def _opened(url: str, have: int) -> Iterator[tuple[IO[bytes], int, int]]:
    """Open a URL at offset `have`; yield the stream, its actual offset (0 if it cannot resume) and the total size."""
    if url.startswith(("http://", "https://")):
        request = _request(url)
        if have:
            request.add_header("Range", f"bytes={have}-")
        with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            begins = have if response.status == HTTPStatus.PARTIAL_CONTENT else 0
            yield response, begins, begins + int(response.headers.get("Content-Length", -begins))
        return
    store, path = open_store(url)
    size = int(store.info(path)["size"] or 0)
    begins = have if have <= size else 0
    with store.open(path, "rb") as file:
        file.seek(begins)
        yield file, begins, size


def _request(url: str) -> Request:
    """Build the request; a user and password in the URL are sent as an Authorization header."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    request = Request(urlunsplit(parts._replace(netloc=host)))  # noqa: S310
    if parts.username is not None:
        known = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", f"Basic {b64encode(known.encode()).decode()}")
    return request


def _check(path: Path, sha256: str | None) -> None:
    if sha256 and not (found := files.sha256(path)).startswith(sha256):
        raise DamagedError(f"its digest begins with {found[: len(sha256)]}, expected {sha256}")


def digest_in(name: str) -> str | None:
    """Return the digest prefix in a file name of torch.hub's form: resnet34-b627a593.pth."""
    found = re.search(r"-([0-9a-f]{8,64})\.", name)
    return found[1] if found else None


def _is_unsatisfiable(error: Exception) -> bool:
    return isinstance(error, HTTPError) and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HTTPError):
        again = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
        return error.code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.code in again
    return not isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError))
