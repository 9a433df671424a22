"""Restricts the addresses given to a run through the Prefect API to allowed roots: folders and URL prefixes.

Whoever may start a run there should not be able to read every file of this machine or send its images to any host.
Addresses that a user writes into params.yaml or on the command line are not restricted.
"""

import os
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rootstock.system.addresses import LOCAL, WRAPPERS, Link, links

SAME = {"s3a": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs", "ssh": "sftp"}  # aliases of a protocol
Roots = Sequence[str]
_active: list[Roots] = []  # roots of the current run, if it was given a source


def allows(address: str, roots: Roots) -> bool:
    """Whether every part of an address, chained or not, lies under a root after resolving links."""
    places = [link for link in links(address) if link.protocol not in WRAPPERS]
    return bool(places) and all(any(_lies_under(link, root) for root in roots) for link in places)


def _lies_under(link: Link, root: str) -> bool:
    if link.address == root:
        return ".." not in _parts(link.address)
    [*_, of_root] = links(root)  # the last part of a chained URL holds the files
    if link.protocol in LOCAL and of_root.protocol in LOCAL:
        folders, places = _resolved(of_root.address), _resolved(link.address)
        return bool(folders and places) and all(place.is_relative_to(folders[0]) for place in places)
    if link.protocol in LOCAL or of_root.protocol in LOCAL:
        return False
    return _is_prefix(of_root.address, link.address)


def _resolved(address: str) -> list[Path]:
    """Return the resolved paths that a path may refer to: some readers expand ~, others do not.

    Empty if it cannot be resolved.
    """
    path = address
    for prefix in ("file://", "local://", "file:", "local:"):
        path = path.removeprefix(prefix)
    spellings = dict.fromkeys([path, os.path.expanduser(path)])  # noqa: PTH111 - as fsspec does it
    try:
        return [Path(spelling).resolve() for spelling in spellings]
    except (OSError, RuntimeError, ValueError):  # a link to itself, or an invalid path
        return []


def _is_prefix(root: str, url: str) -> bool:
    """Whether `url` equals `root` or lies below it, compared by whole path components."""
    above, below = urlsplit(root), urlsplit(url)
    if (_protocol(above.scheme), above.netloc.lower()) != (_protocol(below.scheme), below.netloc.lower()):
        return False
    parts, of_root = _parts(below.path), _parts(above.path)
    return ".." not in parts and parts[: len(of_root)] == of_root


def _protocol(scheme: str) -> str:
    return SAME.get(scheme, scheme)


def _parts(path: str) -> list[str]:
    """Split a percent-decoded path into its components."""
    plain = unquote(unquote(path)).replace("\\", "/")
    return [part for part in plain.split("/") if part not in ("", ".")]


@contextmanager
def restricted_to(roots: Roots | None) -> Iterator[None]:
    """Restrict the files of a run's sources to roots, including those that a table lists or a link points to.

    Args:
        roots: allowed; None for no restriction, if the sources are the user's own.
    """
    if roots is None:
        yield
        return
    _active.append(roots)
    try:
        yield
    finally:
        _active.pop()


def are_given() -> bool:
    """Whether the files of the current run's sources are restricted."""
    return bool(_active)


def forbids(place: str, protocol: str) -> bool:
    """Whether the current run may not read a file of a source.

    Args:
        place: its path in its store.
        protocol: of the store.
    """
    address = place if protocol in LOCAL or "://" in place else f"{protocol}://{posixpath.normpath(place).lstrip('/')}"
    return bool(_active) and not allows(address, _active[-1])
