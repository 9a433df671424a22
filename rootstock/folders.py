"""Files of a store: listed, named, described, and read, many at once where each would have to be waited for."""

import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fsspec.implementations.local import LocalFileSystem

from rootstock import layout
from rootstock.intake import Reason, Rejected
from rootstock.layout import Item, Loader
from rootstock.parallel import bundled, ordered_map

Info = dict[str, Any]  # what a store says of a file: fsspec's `info`
# A store is asked for so many files together, or fewer of these bytes, and so many times at once.
TOGETHER, TOGETHER_BYTES, REQUESTS = 16, 2**22, 4
UNKNOWN_BYTES = 2**20  # what a file is taken to have where the store does not say
# Under one of these a store says when a file has changed; the first that is there counts.
CHANGES = ("ETag", "etag", "md5Hash", "mtime", "Last-Modified", "LastModified", "last_modified", "updated", "created")


def stamp_of(info: Info) -> str:
    """Put together what changes when a file does: size and etag or modification time."""
    change = next((info[key] for key in CHANGES if info.get(key)), "")
    return f"{info.get('size')}:{change}"


@dataclass
class Files:
    """Files of a store, one an item: a folder, or what a manifest names."""

    store: Any
    items: list[Item]
    notes: list[str]
    place: Callable[[str], str]  # path of an item -> path in the store

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Item, Loader]]:
        """Yield the wanted items.

        Files of this machine are read in the thread that asks for them. Those of a store are on their way before: each
        alone would wait for its answer.
        """
        items = (item for item in self.items if item.path in wanted)
        if isinstance(self.store, LocalFileSystem):
            yield from ((item, partial(self._load, self.place(item.path))) for item in items)
            return
        groups = bundled(items, TOGETHER, TOGETHER_BYTES, lambda item: item.size or UNKNOWN_BYTES)
        yield from chain.from_iterable(ordered_map(self._fetch, groups, REQUESTS, 2 * REQUESTS))

    def _load(self, path: str) -> bytes:
        try:
            return Path(path).read_bytes()  # of small files, fsspec's way takes longer than decoding
        except Exception:  # as of a store: this file cannot be had, the others can
            raise Rejected(Reason.UNREADABLE) from None

    def _fetch(self, items: list[Item]) -> list[tuple[Item, Loader]]:
        try:  # not `cat`, to which a name with brackets is a pattern
            found = self.store.cat_ranges([self.place(item.path) for item in items], None, None)
        except Exception as error:
            found = [error] * len(items)
        return [(item, partial(_given, data)) for item, data in zip(items, found, strict=True)]


def _given(data: bytes | BaseException) -> bytes:
    """Give what a store sent; whatever its driver raised instead: this file cannot be had, the others can."""
    if isinstance(data, BaseException):
        raise Rejected(Reason.UNREADABLE) from None
    return data


def find(store: Any, folder: str) -> dict[str, Info]:  # noqa: ANN401
    """List all files below a folder: what the store says of each, by where it lies."""
    return dict(_local_files(folder) if isinstance(store, LocalFileSystem) else store.find(folder, detail=True).items())


def named(found: dict[str, Info], root: str, url: str) -> tuple[dict[str, Info], Callable[[str], str]]:
    """Name files of a store by their printable paths below `root`, and say where in the store such a path lies."""
    prefix = root.rstrip("/") + "/"
    infos, odd = {}, {}
    for place, info in found.items():
        name = place.removeprefix(prefix)
        shown = layout.printable(unquote(name) if url.startswith("http") else name)
        infos[shown] = info
        if shown != name:
            odd[shown] = place
    return infos, lambda path: odd.get(path, prefix + path)


def _local_files(root: str) -> Iterator[tuple[str, Info]]:
    """Walk a folder of this machine; links are followed, but none to a folder above it or one it led to before."""
    followed: set[Path] = set()
    for folder, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        for link in [Path(folder, name) for name in sorted(folders) if Path(folder, name).is_symlink()]:
            target = link.resolve()
            if target in followed or link.parent.resolve().is_relative_to(target):
                folders.remove(link.name)
            followed.add(target)
        for name in names:
            place = f"{folder.rstrip('/')}/{name}"
            try:
                about = os.stat(place)  # noqa: PTH116 - making a Path takes longer than looking at the file
            except OSError:  # a link to nowhere: listed, and rejected when it is read
                yield place, {}
                continue
            if stat.S_ISREG(about.st_mode):  # a pipe would keep its reader waiting
                yield place, {"size": about.st_size, "mtime": about.st_mtime_ns}


def _raise(error: OSError) -> None:
    raise error


def describe(store: Any, places: Collection[str]) -> dict[str, Info | None]:  # noqa: ANN401
    """Say what there is to know of files; None for those that are not there, or not for us.

    A remote store is asked for the list of a folder, and for single files only where it has none.
    """
    known: dict[str, Info] = {}

    def ask(place: str) -> Info | None:
        try:
            return known.get(place) or store.info(place)
        except Exception:  # of whatever kind its driver has
            return None

    if isinstance(store, LocalFileSystem):
        return {place: ask(place) for place in places}
    for folder in sorted({place.rpartition("/")[0] for place in places}):
        try:
            known |= {info["name"]: info for info in store.ls(folder, detail=True) if info.get("size") is not None}
        except Exception:  # noqa: S112 - cannot be listed
            continue
    return dict(zip(places, ordered_map(ask, places, TOGETHER * REQUESTS), strict=True))
