"""The inbox: a folder, on any store that fsspec reaches, in which images arrive as <domain>/<class>/<file>.

Folders whose names begin with an underscore are no domains and no classes: <domain>/_unlabelled holds what has no label
yet, and what earlier runs were done with lies in _taken and _rejected.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from rootstock import folders, layout, params
from rootstock.errors import SourceError
from rootstock.folders import Files, Info, stamp_of
from rootstock.images import format_by_name
from rootstock.intake import Reason
from rootstock.layout import SPLITS, Item
from rootstock.stores import open_store

SPEC = params.Source(path="retrain.inbox", domain="inbox")  # what the data call it
UNLABELLED, TAKEN, REJECTED = "_unlabelled", "_taken", "_rejected"


@dataclass(frozen=True)
class Delivery:
    """What lies in the inbox and has settled; `unsettled` files are still being written."""

    url: str
    store: Any
    root: str
    labelled: Files
    unlabelled: Files
    unsettled: int

    def signature(self) -> str:
        """Name what has been delivered with labels: another listing has another one."""
        return "\n".join(f"{item.path}\t{item.stamp}" for item in self.labelled.items)


def look(url: str, settle_seconds: float) -> Delivery:
    """List an inbox twice, and give what did not change in between; an inbox that is not there is empty.

    Raises:
        SourceError: its store does not answer, or it is a file.
    """
    try:
        store, root = open_store(url)
        root = root.rstrip("/")
        first, _ = _list(store, root, url)
        if first:
            time.sleep(settle_seconds)
        second, place_of = _list(store, root, url)
    except SourceError:
        raise
    except Exception as error:  # every driver has its own errors for a store that does not answer
        raise SourceError(f"retrain.inbox: {url} cannot be reached: {type(error).__name__}: {error}") from error
    settled = {path: info for path, info in second.items() if path in first and stamp_of(first[path]) == stamp_of(info)}
    items = [_item(path, stamp_of(info)) for path, info in sorted(settled.items())]
    items = layout.without_huge(items, lambda path: settled[path].get("size"))

    def files(*, labelled: bool) -> Files:
        return Files(store, [item for item in items if (item.label != UNLABELLED) == labelled], [], place_of)

    return Delivery(url, store, root, files(labelled=True), files(labelled=False), len(second) - len(settled))


def _list(store: Any, root: str, url: str) -> tuple[dict[str, Info], Callable[[str], str]]:  # noqa: ANN401
    """List the files of all domains, by their path in the inbox, and say where in the store such a path lies.

    Beside the domains, only files that are called images are anybody's delivery: there may be a README.
    """
    store.invalidate_cache()  # another process may have delivered
    try:
        top = store.ls(root, detail=True)
    except FileNotFoundError:
        return {}, str
    if not store.isdir(root):
        raise SourceError(f"retrain.inbox: {url} is a file; expected a folder with a sub-folder a domain")
    found: dict[str, Info] = {}
    for info in top:  # not all that is below: what was put away only grows
        place = info["name"].rstrip("/")
        name = PurePosixPath(place).name
        if place == root or name.startswith("_"):
            continue
        if store.isdir(place):
            found |= folders.find(store, place)
        elif format_by_name(name):
            found[place] = info
    infos, place_of = folders.named(found, root, url)
    # A name that ends in a slash is how consoles of object stores keep an empty folder.
    return {path: infos[path] for path in infos if not path.endswith("/") and not layout.is_litter(path)}, place_of


def _item(path: str, stamp: str) -> Item:
    domain, label, *_ = (*path.split("/")[:-1], "", "")
    if label.startswith("_") and label != UNLABELLED:
        label = ""
    problem = None if label else Reason.NO_LABEL
    return Item(path, label, domain, SPLITS, stamp, problem if layout.is_image_name(path) else Reason.NOT_AN_IMAGE)


def put_away(delivery: Delivery, paths: Iterable[str], folder: str) -> None:
    """Move files of a delivery into a folder of the inbox; one that lies there under a name keeps it.

    Raises:
        SourceError: the store does not answer, or lets nothing be moved.
    """
    store = delivery.store

    def move(path: str, place: str) -> None:
        target = _free(store, f"{delivery.root}/{folder}/{path}")
        store.makedirs(target.rpartition("/")[0], exist_ok=True)
        if isinstance(store, LocalFileSystem):
            store.mv(place, target)
            return
        try:
            store.cp_file(place, target)  # to `mv`, a name with brackets is a pattern
            store.rm_file(place)
        except NotImplementedError:  # SFTP cannot copy
            store.mv(place, target)

    _each(delivery, paths, move)


def delete(delivery: Delivery, paths: Iterable[str]) -> None:
    """Remove files of a delivery.

    Raises:
        SourceError: the store does not answer, or lets nothing be removed.
    """
    _each(delivery, paths, lambda _, place: delivery.store.rm_file(place))


def _each(delivery: Delivery, paths: Iterable[str], act: Callable[[str, str], None]) -> None:
    """Act on files that still are what was delivered; one that was replaced since is of the next delivery."""
    stamps = {item.path: item.stamp for files in (delivery.labelled, delivery.unlabelled) for item in files.items}
    try:
        infos, place_of = _list(delivery.store, delivery.root, delivery.url)
        for path in paths:
            if path in infos and stamp_of(infos[path]) == stamps.get(path):
                with suppress(FileNotFoundError):  # gone in this moment
                    act(path, place_of(path))
    except Exception as error:
        raise SourceError(
            f"retrain.after: {delivery.url} cannot be tidied: {type(error).__name__}: {error}. Files that were taken "
            "in are known again; set it to keep to let them lie."
        ) from error


def _free(store: Any, path: str) -> str:  # noqa: ANN401
    """Find a name that nothing has yet: that of another delivery's file stays its own."""
    pure = PurePosixPath(path)
    others = (str(pure.with_stem(f"{pure.stem}-{number}")) for number in count(2))
    return next(name for name in chain([path], others) if not store.exists(name))
