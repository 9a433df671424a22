"""List and read the files of a local folder or remote store, with concurrent requests to remote stores."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, TypeVar
from urllib.parse import unquote

from fsspec.implementations.local import LocalFileSystem

from rootstock.images.inspection import MAX_FILE_BYTES, Reason, Rejected
from rootstock.ingest import file_names, walk
from rootstock.ingest.items import Item, Stamps, among
from rootstock.ingest.layout import Loader
from rootstock.ingest.lookups import AWAY, Lookups
from rootstock.ingest.silent_hosts import SilentHosts
from rootstock.ingest.walk import Info
from rootstock.system import progress, stores
from rootstock.system.availability import is_missing, is_timeout
from rootstock.system.files import read
from rootstock.system.parallel import bundled, ordered_map

T = TypeVar("T")
# Files per request to a store, their total bytes, and requests in flight.
FILES_PER_REQUEST, BYTES_PER_REQUEST, CONCURRENT_REQUESTS = 16, 2**22, 4
FILES_PER_LIST = 16  # wanted of a remote folder, for which it is listed
UNKNOWN_BYTES = 2**20  # assumed size of a file if the store does not report one
# Keys under which stores report that a file has changed; the first present one counts.
CHANGE_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "mtime",
    "Last-Modified",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)


def stamp_of(info: Info) -> str:
    """Return a stamp that changes with the file: size, and etag or modification time."""
    change = next((info[key] for key in CHANGE_KEYS if info.get(key)), "")
    return f"{info.get('size')}:{change}"


def _load(read_here: Callable[[str], bytes], place: str) -> bytes:
    try:
        return read_here(place)  # for small files, fsspec takes longer than decoding
    except Exception:  # as for remote files: only this one is unreadable
        raise Rejected(Reason.UNREADABLE) from None


def _read_here(place: str) -> bytes:
    return read(place, MAX_FILE_BYTES)


@dataclass
class Files:
    """Files of a store, one per item: the files of a folder, or those a manifest lists."""

    store: Any
    items: Sequence[Item]
    notes: list[str]
    place: Callable[[str], str]  # item path -> path in the store
    layout: dict[str, Any] = field(default_factory=dict)  # as recorded in the summary
    empty: tuple[str, ...] = ()  # empty class folders
    read_here: Callable[[str], bytes] = _read_here  # reads a local file by its path; can be pickled

    @property
    def local(self) -> bool:
        """Whether the files are on this machine, so that what loads them can be sent to another process."""
        return isinstance(self.store, LocalFileSystem)

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Item, Loader]]:
        """Yield the wanted items.

        Local files are read in the calling thread. Remote files are prefetched, to hide the latency of each request.
        """
        items = among(self.items, wanted)
        if self.local:
            yield from ((item, partial(_load, self.read_here, self.place(item.path))) for item in items)
            return
        groups = bundled(items, FILES_PER_REQUEST, BYTES_PER_REQUEST, lambda item: item.size or UNKNOWN_BYTES)
        fetched = ordered_map(self._fetch, groups, CONCURRENT_REQUESTS, 2 * CONCURRENT_REQUESTS, patient=False)
        yield from chain.from_iterable(fetched)

    def _fetch(self, items: list[Item]) -> list[tuple[Item, Loader]]:
        if "https" in self.store.protocol:
            places = [self.place(item.path) for item in items]
            contents = ordered_map(self._stream, places, FILES_PER_REQUEST, patient=False)
            return [(item, partial(_content_or_reject, data)) for item, data in zip(items, contents, strict=True)]
        try:  # not `cat`, which treats brackets in a name as a pattern
            with stores.turn(self.store):
                found = self.store.cat_ranges([self.place(item.path) for item in items], None, None)
        except Exception as error:
            found = [error] * len(items)
        return [(item, partial(_content_or_reject, data)) for item, data in zip(items, found, strict=True)]

    def _stream(self, place: str) -> bytes | BaseException:
        """Read a file from a web server, which may not report a size, up to the maximum file size."""
        try:
            with self.store.open(
                place, "rb", block_size=0, size=UNKNOWN_BYTES
            ) as file:  # avoids a request for the size
                return stores.read(file, MAX_FILE_BYTES + 1)
        except Exception as error:
            return error


def _content_or_reject(data: bytes | BaseException) -> bytes:
    """Return the bytes a store sent; if its driver raised instead, reject this file as unreadable."""
    if isinstance(data, BaseException):
        raise Rejected(Reason.UNREADABLE) from None
    return data


def list_stamps(store: Any, root: str, url: str) -> tuple[Stamps, Callable[[str], str]]:  # noqa: ANN401
    """Return the stamps of the files below a folder, as `relative_paths` does; in columns, as there may be millions."""
    odd: dict[str, str] = {}
    found = _relative(((place, stamp_of(info)) for place, info in walk.files(store, root)), root, url, odd)
    return Stamps.of(found), _places(root, odd)


def relative_paths(found: Iterable[tuple[str, T]], root: str, url: str) -> tuple[dict[str, T], Callable[[str], str]]:
    """Return what was found at each path relative to `root`, and a function from such a path to the path in the store.

    Args:
        found: pairs of a path in the store and anything, such as an info or a stamp.
        root: a folder of the store, which may be a part of the paths.
        url: its address, which tells how names are quoted.
    """
    odd: dict[str, str] = {}
    return dict(_relative(found, root, url, odd)), _places(root, odd)


def _relative(found: Iterable[tuple[str, T]], root: str, url: str, odd: dict[str, str]) -> Iterator[tuple[str, T]]:
    """Yield what was found at each relative path; what the store calls those that are shown otherwise goes to `odd`."""
    prefix = root.rstrip("/") + "/"
    for place, what in found:
        name = place.removeprefix(prefix)
        shown = file_names.storable(unquote(name) if url.startswith("http") else name)
        if shown != name:
            odd[shown] = place
        yield shown, what


def _places(root: str, odd: Mapping[str, str]) -> Callable[[str], str]:
    prefix = root.rstrip("/") + "/"
    return lambda path: odd.get(path, prefix + path)


def file_stamps(
    store: Any,  # noqa: ANN401
    places: Callable[[], Iterable[str]],
    lookups: Lookups | None = None,
) -> Iterator[str | None]:
    """Yield the stamps of files; None if one does not exist or is no file, AWAY if it is not accessible.

    Remote folders from which many files are wanted are listed; the other files are asked for one by one.

    Args:
        store: of the files.
        places: yields their paths there, every time the same: there may be too many to keep.
        lookups: keeps the stamps of those that are asked for one by one, for a run that is interrupted.
    """
    silent = SilentHosts()

    def ask(place: str) -> str | None:
        if place in silent:
            return AWAY
        try:
            with stores.turn(store):
                found = _stamp_of_file(store.info(place))
        except Exception as error:  # any error of its driver
            if is_timeout(error):
                silent.timed_out(place)
                return AWAY
            found = None if isinstance(error, FileNotFoundError) and is_missing(error) else AWAY
        silent.answered(place)
        return found

    if isinstance(store, LocalFileSystem):
        return map(ask, places())
    folders = _worth_listing(store, places())
    known = Stamps.of(_listed_files(store, folders)) if folders else {}
    return _looked_up(ask, places, known, lookups)


def _looked_up(
    ask: Callable[[str], str | None], places: Callable[[], Iterable[str]], known: Mapping[str, str],
    lookups: Lookups | None,
) -> Iterator[str | None]:  # fmt: skip
    """Yield the stamp of each place: the known one, or else the one that an interrupted run saw, or else ask."""

    def known_of(place: str) -> str | None:
        return known.get(place) or (lookups.seen(place) if lookups else None)

    total = sum(1 for _ in places())
    each = ((place, known_of(place)) for place in places())  # in the thread of the caller, whose scan cache it is
    found = ordered_map(
        lambda one: (*one, one[1] or ask(one[0])), each, FILES_PER_REQUEST * CONCURRENT_REQUESTS, patient=False
    )
    with progress.bar("ingest, looking up", total, "addresses") as advance:
        for place, before, stamp in found:
            if lookups and stamp and stamp != AWAY and place not in known:
                lookups.add(place, stamp)
            advance(0 if before else 1, skip=1 if before else 0)
            yield stamp
    if lookups:
        lookups.end()


def _worth_listing(store: Any, places: Iterable[str]) -> list[str]:  # noqa: ANN401
    """Return the remote folders that have many of the wanted files; a web server's list has no sizes."""
    if "https" in store.protocol:
        return []
    counts = Counter(place.rpartition("/")[0] for place in places)
    return sorted(folder for folder, count in counts.items() if count >= FILES_PER_LIST)


def _listed_files(store: Any, folders: Iterable[str]) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Yield the path and the stamp of each file in some folders; those that cannot be listed are left out."""
    for folder in folders:
        try:
            with stores.turn(store):
                listed = [info for info in store.ls(folder, detail=True) if info.get("size") is not None]
        except Exception:  # noqa: S112 - cannot be listed
            continue
        yield from ((info["name"], stamp) for info in listed if (stamp := _stamp_of_file(info)))


def _stamp_of_file(info: Info) -> str | None:
    return stamp_of(info) if info.get("type", "file") == "file" else None
