"""List images to classify: a folder, pattern, archive, table or list of addresses, or one file, on any fsspec store.

Unlike the sources of a dataset (sources.py) they have no labels, and their folders mean nothing.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

from rootstock.images.reasons import Reason
from rootstock.ingest import archives, file_names, image_tables, layout, opening
from rootstock.ingest.archives import Archive
from rootstock.ingest.folders import Files, list_stamps, relative_paths, stamp_of
from rootstock.ingest.junk import is_junk
from rootstock.ingest.layout import Item, Loader
from rootstock.ingest.opening import ARCHIVES, TABLES
from rootstock.ingest.sources import Images, within_roots
from rootstock.system.addresses import store_of
from rootstock.system.errors import SourceError
from rootstock.system.stores import open_store

STANDARD_INPUT = "-"
PATTERN = re.compile(r"[*?\[]")


@dataclass
class Several:
    """Images of several stores, one after the other."""

    parts: list[Files]

    @property
    def items(self) -> list[Item]:
        """Return the items of all parts."""
        return [item for part in self.parts for item in part.items]

    def read(self, wanted: Collection[str]) -> Iterator[tuple[Item, Loader]]:
        """Yield the wanted items in order."""
        yield from chain.from_iterable(part.read(wanted) for part in self.parts)


def list_images(address: str, lines: Iterable[str] = ()) -> Images:
    """List images to classify.

    Args:
        address: of a folder, an archive, a table with a column of addresses (`image_tables.ADDRESSES`) or an image, a
            pattern (`photos/**/*.jpg`), or STANDARD_INPUT.
        lines: of standard input, an address each.

    Raises:
        SourceError: it does not exist, cannot be read, or holds no images.
    """
    images = _list(address, lines)
    if not images.items:
        raise SourceError(f"{address}: no images")
    return images


def _list(address: str, lines: Iterable[str]) -> Images:
    if address == STANDARD_INPUT:
        return _of_addresses([line.strip() for line in lines if line.strip()], "")
    if PATTERN.search(address) and (found := _matching(address)) is not None:
        return found
    store, root = opening.open_existing(address, address)
    with opening.translating_errors(address):
        if store.isdir(root):
            return _files(store, *list_stamps(store, root, address))
        opening.check_is_file(store, root, address)
        if root.lower().endswith(ARCHIVES):
            return _archive(store, root, address)
        if root.lower().endswith(TABLES):
            listed = image_tables.addresses(address, root, opening.read_table(store, root, address))
            return _of_addresses(listed, address.rpartition("/")[0])
        return _files(store, {file_names.storable(address): stamp_of(store.info(root))}, lambda _: root)


def _matching(address: str) -> Files | None:
    """List the files that a pattern matches; None if it is the name of a file or folder that has such characters."""
    try:
        store, root = open_store(address)
    except (ImportError, ValueError):
        return None  # said where it is opened as a name
    if not (pattern := PATTERN.search(root)):
        return None
    with opening.translating_errors(address):
        if store.exists(root):
            return None
        infos = store.glob(root, detail=True)
        found = ((place, stamp_of(info)) for place, info in infos.items() if info.get("type") == "file")
        folder = root[: pattern.start()].rpartition("/")[0]
        stamps, place_of = relative_paths(found, folder, address)
    return _files(store, stamps, place_of)


def _files(store: Any, stamps: Mapping[str, str], place_of: Callable[[str], str]) -> Files:  # noqa: ANN401
    items = [
        _item(path, stamp)
        for path, stamp in sorted(stamps.items())
        if not path.endswith("/") and not is_junk(path) and file_names.may_be_image(path)
    ]
    items = layout.mark_too_large(items)
    return within_roots(Files(store, items, [], place_of))


def _item(path: str, stamp: str, problem: Reason | None = None) -> Item:
    return Item(path, "", "", (), stamp, problem)


def _archive(store: Any, root: str, address: str) -> Archive:  # noqa: ANN401
    members = archives.read_members(store, root, stamp_of(store.info(root)), address)
    items = []
    for path, stamp in members.items():
        if path.endswith("/") or is_junk(path) or not file_names.may_be_image(path):
            continue
        unsafe = Reason.UNSAFE_PATH if not stamp or file_names.is_unsafe(path) else None
        items.append(_item(path, stamp, unsafe))
    return Archive(store, root, layout.mark_too_large(items))


def _of_addresses(addresses: list[str], folder: str) -> Several:
    """List images by address, in this order; relative paths are those below `folder`, itself an address."""
    absolute = [_absolute(address, folder) for address in addresses]
    parts = []
    for _, some in groupby(zip(addresses, absolute, strict=True), key=lambda pair: store_of(pair[1])):
        places = dict(some)
        store = opening.open_store_of_image(next(iter(places.values())), next(iter(places)))
        within = {file_names.storable(address): store._strip_protocol(place) for address, place in places.items()}
        parts.append(within_roots(Files(store, [_item(address, "") for address in within], [], within.__getitem__)))
    return Several(parts)


def _absolute(address: str, folder: str) -> str:
    return address if "://" in address or address.startswith("/") or not folder else f"{folder}/{address}"
