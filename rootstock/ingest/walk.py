"""Find the files below a folder of this machine or of a remote store."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from rootstock.images.pixels import format_by_name
from rootstock.ingest import file_names
from rootstock.ingest.junk import is_junk_name
from rootstock.system import stores
from rootstock.system.errors import SourceError
from rootstock.system.parallel import ordered_map

Info = dict[str, Any]  # fsspec's `info` of a file
MAX_LINKS = 1000  # links that may lead to one folder; a dataset may have as many classes
MAX_LISTS = 2000  # of folders on a level: of more, a store answers sooner if it lists all below at once
CONCURRENT_LISTS = 4


def files(
    store: Any,  # noqa: ANN401
    folder: str,
    *,
    follow: bool = True,
    at_once: bool = False,
) -> Iterator[tuple[str, Info]]:
    """Yield the path in the store and the info of each file below a folder.

    An empty folder is a path with a trailing slash. Local junk folders are skipped, and local links are followed, or,
    without `follow`, listed as {"type": "link"}. A remote folder is listed in fewer requests, but more memory, if it is
    listed `at_once`.

    Raises:
        SourceError: too many links lead to one folder.
    """
    if isinstance(store, LocalFileSystem):
        return _local_files(folder, follow=follow)
    if at_once or "https" in store.protocol:  # whose pages may have links to what is no folder
        return _all_below(store, folder)
    return _by_folder(store, folder)


def _all_below(store: Any, folder: str) -> Iterator[tuple[str, Info]]:  # noqa: ANN401
    with stores.turn(store):
        infos = store.find(folder, detail=True).values()
    yield from _shown(infos)


def _by_folder(store: Any, folder: str) -> Iterator[tuple[str, Info]]:  # noqa: ANN401
    """List a remote folder and, at most MAX_LISTS to a level, those below it one by one.

    A driver has an object of about a kilobyte for each file that it lists at once.
    """
    level = [folder]
    while level:
        list_one = partial(_list_folder, store, most_below=MAX_LISTS // len(level))
        level_below: list[str] = []
        for listed, below in ordered_map(list_one, level, CONCURRENT_LISTS, 2 * CONCURRENT_LISTS):
            yield from listed
            level_below += below
        level = level_below


def _list_folder(store: Any, folder: str, most_below: int) -> tuple[list[tuple[str, Info]], list[str]]:  # noqa: ANN401
    """Return the files of a folder and the folders in it; of more than `most_below`, the files of these as well."""
    own = folder.strip("/")
    with stores.turn(store):
        infos = store.ls(folder, detail=True)
        within = [info for info in infos if info.get("type") == "directory"]
        below = [info["name"] for info in within if info["name"].strip("/") != own]
        # Some stores list the folder itself, too; or it is one without a name (a//b.jpg), which only `find` looks into.
        if len(below) > most_below or len(below) < len(within):
            infos, below = store.find(folder, detail=True).values(), []
        store.invalidate_cache()  # it would keep what it has listed
    inside = set(below)
    return list(_shown(info for info in infos if info.get("type") != "directory" or info["name"] not in inside)), below


def _shown(infos: Iterable[Info]) -> Iterator[tuple[str, Info]]:
    """Yield the files by path, and entries that end in a slash: they mark a folder on stores that have none."""
    return ((info["name"], info) for info in infos if info.get("type") != "directory" or info["name"].endswith("/"))


def _local_files(root: str, *, follow: bool) -> Iterator[tuple[str, Info]]:
    """Walk a local folder, in no particular order.

    Links are followed, so that a second link to the same folder lists its files again under its own name; circular
    links are not.
    """
    ways: Counter[str] = Counter()  # links to each folder
    waiting: list[tuple[str, str, tuple[str, ...]]] = [(root.rstrip("/") or "/", os.path.realpath(root), ())]
    while waiting:
        shown, real, behind = waiting.pop()
        is_empty = True
        with os.scandir(shown) as entries:
            for entry in entries:
                if is_junk_name(entry.name):
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
                elif not _is_circular(target := os.path.realpath(place), (real, *behind)):
                    ways[target] += 1
                    if ways[target] > MAX_LINKS:
                        raise SourceError(
                            f"{root}: more than {MAX_LINKS} links lead to {target}, including {place}: they seem to be "
                            "circular. Remove some of them."
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
    except OSError:  # a broken link: listed, and rejected when read
        yield place, {}
        if file_names.is_image_name(entry.name) and not format_by_name(entry.name):  # it may have been a class folder
            yield f"{place}/", {"type": "directory"}
        return
    if stat.S_ISREG(about.st_mode):  # a pipe would block its reader
        yield place, {"size": about.st_size, "mtime": about.st_mtime_ns}


def _is_circular(target: str, came_through: tuple[str, ...]) -> bool:
    """Whether a link leads to, or above, a folder on the path to it."""
    return any(f"{real}/".startswith(target.rstrip("/") + "/") for real in came_through)
