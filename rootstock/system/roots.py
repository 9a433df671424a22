"""How far an address may reach that somebody gave to a run from elsewhere, by the API of a Prefect server.

Who may start a run there is not thereby somebody who may read every file of this machine, or send its images to any
host. So such addresses lie under roots: folders and prefixes of URLs. What stands in params.yaml by a person's hand, or
is given on the command line, reaches whatever that person reaches.
"""

import os
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rootstock.system.addresses import LOCAL, WRAPPERS, Link, links

SAME = {"s3a": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs", "ssh": "sftp"}  # other names of a protocol
Roots = Sequence[str]
_held: list[Roots] = []  # of the run that is under way, if it was given a source


def allows(address: str, roots: Roots) -> bool:
    """Whether every part of an address, chained or not, links resolved, lies under a root."""
    places = [link for link in links(address) if link.protocol not in WRAPPERS]
    return bool(places) and all(any(_lies_under(link, root) for root in roots) for link in places)


def _lies_under(link: Link, root: str) -> bool:
    if link.address == root:
        return ".." not in _parts(link.address)
    [*_, of_root] = links(root)  # a chained one ends where its files are
    if link.protocol in LOCAL and of_root.protocol in LOCAL:
        folders, places = _resolved(of_root.address), _resolved(link.address)
        return bool(folders and places) and all(place.is_relative_to(folders[0]) for place in places)
    if link.protocol in LOCAL or of_root.protocol in LOCAL:
        return False
    return _is_prefix(of_root.address, link.address)


def _resolved(address: str) -> list[Path]:
    """Return the places that a path may mean, links resolved: ~ is a home to some readers, and a name to others.

    Where it cannot be followed, there are none.
    """
    path = address
    for prefix in ("file://", "local://", "file:", "local:"):
        path = path.removeprefix(prefix)
    spellings = dict.fromkeys([path, os.path.expanduser(path)])  # noqa: PTH111 - as fsspec does it
    try:
        return [Path(spelling).resolve() for spelling in spellings]
    except (OSError, RuntimeError, ValueError):  # a link to itself, no path at all
        return []


def _is_prefix(root: str, url: str) -> bool:
    """Whether a URL is another one, or lies below it, by whole parts of its path."""
    above, below = urlsplit(root), urlsplit(url)
    if (_protocol(above.scheme), above.netloc.lower()) != (_protocol(below.scheme), below.netloc.lower()):
        return False
    parts, of_root = _parts(below.path), _parts(above.path)
    return ".." not in parts and parts[: len(of_root)] == of_root


def _protocol(scheme: str) -> str:
    return SAME.get(scheme, scheme)


def _parts(path: str) -> list[str]:
    """Take a path apart, its percent-encoding undone."""
    plain = unquote(unquote(path)).replace("\\", "/")
    return [part for part in plain.split("/") if part not in ("", ".")]


@contextmanager
def held(roots: Roots | None) -> Iterator[None]:
    """Hold the files of a run's sources to roots: those that a table names, and those behind links.

    Args:
        roots: none where the sources are a person's own.
    """
    if roots is None:
        yield
        return
    _held.append(roots)
    try:
        yield
    finally:
        _held.pop()


def forbids(place: str, protocol: str) -> bool:
    """Whether a file of a source is out of the reach of the run that is under way.

    Args:
        place: its path in its store.
        protocol: of the store.
    """
    address = place if protocol in LOCAL or "://" in place else f"{protocol}://{posixpath.normpath(place).lstrip('/')}"
    return bool(_held) and not allows(address, _held[-1])
