"""Open what a source names: check that it exists and can be read, and say what is wrong in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from rootstock.images.inspection import MAX_FILE_BYTES
from rootstock.ingest import image_tables
from rootstock.system import stores
from rootstock.system.addresses import EXTRA_OF, links
from rootstock.system.availability import is_missing, is_unavailable
from rootstock.system.errors import SourceError
from rootstock.system.stores import open_store

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
TABLES = image_tables.EXTENSIONS


class Unreachable(SourceError):  # noqa: N818 - may be temporary
    """A source that does not exist or cannot be reached; its earlier images can stay.

    Other errors are not included: a broken source would silently keep its old labels in a run that succeeds.
    """


def open_existing(path: str, where: str) -> tuple[Any, str]:
    """Open the store of a source and check that the source exists.

    Args:
        path: or a URL.
        where: it is named, with the path, for errors.

    Raises:
        Unreachable: it does not exist, its store cannot be reached, or the driver of its store is not installed.
        SourceError: it cannot be read.
    """
    try:
        with translating_errors(where, passed_on=(ImportError, ValueError)):
            store, root = open_store(path)
    except ImportError as error:
        extra = next((EXTRA_OF[link.protocol] for link in links(path) if link.protocol in EXTRA_OF), None)
        todo = f": pip install -c constraints.txt -e '.[{extra}]'" if extra else ""
        raise Unreachable(f"{where}: its driver is not installed{todo} ({error})") from None
    except ValueError as error:
        raise SourceError(f"{where}: expected a path or an fsspec URL; {error}") from None
    with translating_errors(where):
        try:
            _check_exists(store, root)
        except FileNotFoundError as error:
            if not is_missing(error):
                raise
            raise Unreachable(f"{where} does not exist. Expected a folder, an archive or a manifest.") from None
    return store, root


def open_store_of_image(url: str, where: str) -> Any:  # noqa: ANN401
    """Open the store of an image that a table or a list names; `where` names it for errors.

    Raises:
        SourceError: its protocol is not supported, or the driver of its store is not installed.
    """
    try:
        return open_store(url)[0]
    except (ImportError, ValueError) as error:
        raise SourceError(f"{where}: expected the path or URL of an image; {error}") from None


def _check_exists(store: Any, root: str) -> None:  # noqa: ANN401
    """Raise the actual error if a source cannot be accessed; `exists` would only return False."""
    if isinstance(store, LocalFileSystem):
        Path(root).stat()
    elif not store.exists(root):
        store.info(root)


@contextmanager
def translating_errors(where: str, passed_on: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn driver errors into Unreachable or SourceError; `passed_on` errors are raised unchanged."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (SourceError, *passed_on)):
            raise
        # fsspec reports every error of a web server as not found; its cause says more.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        message = f"{type(cause).__name__}: {cause}"
        if is_unavailable(error):
            raise Unreachable(f"{where} cannot be reached: {message}") from error
        raise SourceError(f"{where} exists but cannot be read: {message}") from error


def read_table(store: Any, root: str, where: str) -> bytes:  # noqa: ANN401
    """Read a table of images.

    Raises:
        SourceError: it is not a file, or too large.
    """
    check_is_file(store, root, where)
    with store.open(root, "rb") as file:
        content = stores.read(file, MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        size = store.info(root).get("size") or len(content)
        raise SourceError(
            f"{where} holds {size:,} bytes; expected a table of at most {MAX_FILE_BYTES:,}. "
            "Split it into several sources."
        )
    return content


def check_is_file(store: Any, root: str, where: str) -> None:  # noqa: ANN401
    """Check that what is named like a table or an archive is a file.

    Raises:
        SourceError: it is a folder, a pipe or a device.
    """
    if store.isdir(root):
        kind = "table" if root.lower().endswith(TABLES) else "archive"
        raise SourceError(
            f"{where} is a folder, but is named like {'an' if kind == 'archive' else 'a'} {kind}. "
            "Rename the folder, or set the path of the file."
        )
    if store.info(root).get("type") == "other":
        raise SourceError(f"{where} is a pipe or a device; expected a file.")
