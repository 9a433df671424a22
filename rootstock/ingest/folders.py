"""Files of a store: listed, named, described, and read, many at once where each would have to be waited for."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any
from urllib.parse import unquote

from fsspec.implementations.local import LocalFileSystem

from rootstock.images.inspection import MAX_FILE_BYTES, Reason, Rejected
from rootstock.images.pixels import format_by_name
from rootstock.ingest import layout
from rootstock.ingest.layout import Item, Loader
from rootstock.ingest.litter import is_litter_name
from rootstock.system import stores
from rootstock.system.errors import SourceError
from rootstock.system.files import read
from rootstock.system.parallel import bundled, ordered_map

Info = dict[str, Any]  # what a store says of a file: fsspec's `info`
# A store is asked for so many files together, or fewer of these bytes, and so many times at once.
TOGETHER, TOGETHER_BYTES, REQUESTS = 16, 2**22, 4
WAYS = 1000  # by so many links a folder is reached at most: fewer than a data set has classes
UNKNOWN_BYTES = 2**20  # what a file is taken to have where the store does not say
# Under one of these a store says when a file has changed; the first that is there counts.
CHANGES = ("ETag", "etag", "md5Hash", "mtime", "Last-Modified", "LastModified", "last_modified", "updated", "created")


def stamp_of(info: Info) -> str:
    """Put together what changes when a file does: size and etag or modification time."""
    change = next((info[key] for key in CHANGES if info.get(key)), "")
    return f"{info.get('size')}:{change}"


def _read_here(place: str) -> bytes:
    return read(place, MAX_FILE_BYTES)


@dataclass
class Files:
    """Files of a store, one an item: a folder, or what a manifest names."""

    store: Any
    items: list[Item]
    notes: list[str]
    place: Callable[[str], str]  # path of an item -> path in the store
    layout: dict[str, Any] = field(default_factory=dict)  # how it was read, as the summary keeps it
    empty: tuple[str, ...] = ()  # class folders that hold nothing
    read_here: Callable[[str], bytes] = _read_here  # a file of this machine, by its place

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
            return self.read_here(path)  # of small files, fsspec's way takes longer than decoding
        except Exception:  # as of a store: this file cannot be had, the others can
            raise Rejected(Reason.UNREADABLE) from None

    def _fetch(self, items: list[Item]) -> list[tuple[Item, Loader]]:
        if "https" in self.store.protocol:
            contents = ordered_map(self._stream, [self.place(item.path) for item in items], TOGETHER)
            return [(item, partial(_given, data)) for item, data in zip(items, contents, strict=True)]
        try:  # not `cat`, to which a name with brackets is a pattern
            found = self.store.cat_ranges([self.place(item.path) for item in items], None, None)
        except Exception as error:
            found = [error] * len(items)
        return [(item, partial(_given, data)) for item, data in zip(items, found, strict=True)]

    def _stream(self, place: str) -> bytes | BaseException:
        """Read a file of a web server, which need not say how large it is: no more than may be taken in."""
        try:
            with self.store.open(place, "rb", block_size=0, size=UNKNOWN_BYTES) as file:  # asks for no size then
                return stores.read(file, MAX_FILE_BYTES + 1)
        except Exception as error:
            return error


def _given(data: bytes | BaseException) -> bytes:
    """Return what a store sent; whatever its driver raised instead: this file cannot be had, the others can."""
    if isinstance(data, BaseException):
        raise Rejected(Reason.UNREADABLE) from None
    return data


def find(store: Any, folder: str, *, follow: bool = True) -> dict[str, Info]:  # noqa: ANN401
    """List all files below a folder: what the store says of each, by where it lies.

    A folder that holds nothing is a place that ends in a slash. On this machine, litter is not looked into, and links
    are followed, or, without `follow`, listed as what they are: {"type": "link"}.

    Raises:
        SourceError: links lead to one folder by too many ways.
    """
    return dict(_local_files(folder, follow=follow) if isinstance(store, LocalFileSystem) else _found(store, folder))


def _found(store: Any, folder: str) -> Iterator[tuple[str, Info]]:  # noqa: ANN401
    for place, info in store.find(folder, detail=True).items():
        if info.get("type") != "directory" or place.endswith("/"):
            yield place, info


def named(found: dict[str, Info], root: str, url: str) -> tuple[dict[str, Info], Callable[[str], str]]:
    """Name files of a store by their paths below `root`, and say where in the store such a path lies."""
    prefix = root.rstrip("/") + "/"
    infos, odd = {}, {}
    for place, info in found.items():
        name = place.removeprefix(prefix)
        shown = layout.storable(unquote(name) if url.startswith("http") else name)
        infos[shown] = info
        if shown != name:
            odd[shown] = place
    return infos, lambda path: odd.get(path, prefix + path)


def _local_files(root: str, *, follow: bool) -> Iterator[tuple[str, Info]]:
    """Walk a folder of this machine, in no order.

    A link is followed wherever it stands, so that a second one to the same folder brings its files under its own name,
    too; but none to a folder that the way there has come through.
    """
    ways: Counter[str] = Counter()  # to a folder behind a link
    waiting: list[tuple[str, str, tuple[str, ...]]] = [(root.rstrip("/") or "/", os.path.realpath(root), ())]
    while waiting:
        shown, real, behind = waiting.pop()
        is_empty = True
        with os.scandir(shown) as entries:
            for entry in entries:
                if is_litter_name(entry.name):
                    continue
                is_empty = False
                place = f"{shown.rstrip('/')}/{entry.name}"
                is_link = entry.is_symlink()
                if is_link and not follow:
                    yield place, {"type": "link"}
                elif not _is_folder(entry):
                    yield from _local_file(place, entry)
                elif not is_link:
                    waiting.append((place, f"{real.rstrip('/')}/{entry.name}", behind))
                elif not _leads_back(target := os.path.realpath(place), (real, *behind)):
                    ways[target] += 1
                    if ways[target] > WAYS:
                        raise SourceError(
                            f"{root}: more than {WAYS} links lead to {target}, one of them {place}: they seem to go in "
                            "circles. Take some of them away."
                        )
                    waiting.append((place, target, (real, *behind)))
        if is_empty and shown != root:
            yield f"{shown}/", {"type": "directory"}


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _local_file(place: str, entry: "os.DirEntry[str]") -> Iterator[tuple[str, Info]]:
    try:
        about = entry.stat()
    except OSError:  # a link to nowhere: listed, and rejected when it is read
        yield place, {}
        if layout.is_image_name(entry.name) and not format_by_name(entry.name):  # of a class folder, perhaps
            yield f"{place}/", {"type": "directory"}
        return
    if stat.S_ISREG(about.st_mode):  # a pipe would keep its reader waiting
        yield place, {"size": about.st_size, "mtime": about.st_mtime_ns}


def _leads_back(target: str, came_through: tuple[str, ...]) -> bool:
    """Whether a link leads to, or above, a folder that the way to it has come through."""
    return any(f"{real}/".startswith(target.rstrip("/") + "/") for real in came_through)


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
