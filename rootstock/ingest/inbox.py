"""The inbox: a folder on any fsspec store where new images arrive as <domain>/<class>/<file>.

Folders whose names begin with an underscore are neither domains nor classes: <domain>/_unlabelled holds images without
labels, and _taken and _rejected hold images that earlier runs processed. Links are not followed, and a folder that does
not look like an inbox is refused.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from rootstock.config import params
from rootstock.dataset import label_sets
from rootstock.images.inspection import MAX_FILE_BYTES, Reason
from rootstock.images.pixels import format_by_name
from rootstock.ingest import file_names, folders, group_names, inbox_checks, layout, layout_detection, walk
from rootstock.ingest.ambiguity import AmbiguousLayoutError
from rootstock.ingest.folders import Files, stamp_of
from rootstock.ingest.junk import is_junk, is_junk_name
from rootstock.ingest.labels import clean, lookalike_key
from rootstock.ingest.layout import SPLITS, Item, Layout
from rootstock.ingest.walk import Info
from rootstock.system.errors import SourceError
from rootstock.system.safe_folder import SafeFolder
from rootstock.system.stores import open_store

log = logging.getLogger(__name__)

MISSPELT = 0.75  # similarity of a new class to a known one from which on a person is asked
SPEC = params.Source(path="retrain.inbox", domain="inbox")  # its name in the dataset
GROUP = "retrain.group"  # the parameter
UNLABELLED, TAKEN, REJECTED = "_unlabelled", "_taken", "_rejected"


@dataclass(frozen=True)
class Delivery:
    """The complete files in the inbox; `unsettled` counts those still being written."""

    url: str
    store: Any
    root: str
    labelled: Files
    unlabelled: Files
    unsettled: int

    def signature(self) -> str:
        """Return a string that identifies the labelled files of this delivery."""
        return "\n".join(f"{item.path}\t{item.stamp}" for item in self.labelled.items)


def list_delivery(
    url: str, settle_seconds: float, sources: Iterable[params.Source] = (), group: str | None = None
) -> Delivery:
    """List the files of an inbox that did not change between two checks; a missing inbox is empty.

    Args:
        url: the inbox.
        settle_seconds: time between the two checks.
        sources: the sources of the dataset; the inbox must not share files with them.
        group: regular expression that finds the group of an image in its path (`retrain.group`).

    Raises:
        SourceError: the store cannot be reached, or the URL is a file or not an inbox.
    """
    try:
        inbox_checks.refuse_wrapped(url)
        store, root = open_store(url)
        root = root.rstrip("/")
        if isinstance(store, LocalFileSystem):
            root = os.path.realpath(root or "/")
            inbox_checks.refuse_by_place(Path(root), url)
        inbox_checks.refuse_shared(url, sources)
        first, _ = _list(store, root, url)
        if first:
            time.sleep(settle_seconds)
        second, place_of = _list(store, root, url)
    except SourceError:
        raise
    except Exception as error:  # each driver has its own errors
        raise SourceError(f"retrain.inbox: {url} cannot be reached: {type(error).__name__}: {error}") from error
    stable = {path: info for path, info in second.items() if path in first and stamp_of(first[path]) == stamp_of(info)}
    items: Sequence[Item] = [_item(path, info) for path, info in sorted(stable.items())]
    items = layout.mark_too_large(items)
    inbox_checks.refuse_by_content(items, url)
    items = group_names.name_groups(items, group, GROUP)
    if mismatch := group_names.describe_mismatch((item for item in items if item.label != UNLABELLED), group, GROUP):
        log.warning("%s", mismatch)  # no error: images of another kind may well be in no group

    def files(*, labelled: bool) -> Files:
        chosen = [item for item in items if (item.label != UNLABELLED) == labelled]
        notes = [note for note in (group_names.describe_groups(chosen),) if note and labelled]
        return Files(store, chosen, notes, place_of, read_here=partial(_read_in, root))

    return Delivery(url, store, root, files(labelled=True), files(labelled=False), len(second) - len(stable))


def _read_in(root: str, place: str) -> bytes:
    with SafeFolder(Path(root)) as inbox:
        return inbox.read(place.removeprefix(f"{root.rstrip('/')}/"), MAX_FILE_BYTES)


def is_probably_filled(url: str) -> bool:
    """Whether a folder on this machine has an entry that may be a domain; of another store nothing is known."""
    folder = Path(url)
    names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
    return any(not (name.startswith("_") or is_junk_name(name)) for name in names)


def _list(store: Any, root: str, url: str) -> tuple[dict[str, Info], Callable[[str], str]]:  # noqa: ANN401
    """List the files of all domains by path in the inbox; also return a function from such a path to the store's.

    At the top level only files with image names are listed, since there may be a README. A link is listed as a file,
    and its target does not belong to the inbox.
    """
    store.invalidate_cache()  # another process may have added files
    try:
        top = store.ls(root, detail=True)
    except FileNotFoundError:
        return {}, str
    if not store.isdir(root):
        raise SourceError(f"retrain.inbox: {url} is a file; expected a folder with one subfolder per domain")
    found: dict[str, Info] = {}
    for info in top:  # not everything below: processed files only accumulate
        place = info["name"].rstrip("/")
        name = PurePosixPath(place).name
        if place == root or name.startswith("_") or is_junk_name(name):
            continue
        if info.get("islink"):
            found[place] = {"type": "link"}
        elif store.isdir(place):
            found.update(walk.files(store, place, follow=False, at_once=True))
        elif format_by_name(name):
            found[place] = info
    infos, place_of = folders.relative_paths(found.items(), root, url)
    # A name with a trailing slash is an empty folder.
    return {path: infos[path] for path in infos if not path.endswith("/") and not is_junk(path)}, place_of


def _item(path: str, info: Info) -> Item:
    domain, label, *_ = (*path.split("/")[:-1], "", "")
    if label.startswith("_") and label != UNLABELLED:
        label = ""
    problem = None if label else Reason.NO_LABEL
    if not file_names.is_image_name(path):
        problem = Reason.NOT_AN_IMAGE
    if info.get("type") == "link":
        problem = Reason.UNSAFE_PATH
    return Item(path, clean(label), domain, SPLITS, stamp_of(info), problem)


def with_label_sets(items: Iterable[Item]) -> list[Item]:
    """Read the folders of a delivery as sets of labels, `cat;dog`, where images have any number of classes.

    A semicolon alone means none of the classes.
    """
    return [item._replace(label=label_sets.parse(item.label, clean)) for item in items]


def check_classes(items: Iterable[Item], known: Collection[str], *, multi_label: bool = False) -> None:
    """Check that new folders of a delivery are plausible classes; warn of one that may be a known one, misspelt.

    Args:
        items: the labelled files of the delivery.
        known: the classes of the dataset.
        multi_label: whether the label of a file is a set of them.

    Raises:
        SourceError: a folder is named like a split or masks, or contains class folders.
    """
    usable = [(layout.parts_of(item.path.rpartition("/")[0]), item.label) for item in items if not item.problem]
    folders_of = Counter(folder for folder, _ in usable)
    try:
        layout_detection.check_new_classes(folders_of, Layout(layout.ANY), known, SPEC.path)
    except AmbiguousLayoutError as error:
        raise SourceError(
            f"{SPEC.path}: {error.seen}; {inbox_checks.EXPECTED}. "
            "A class of such a name can be ingested from ingest.sources, where its layout can be set."
        ) from None
    names = {lookalike_key(name): name for name in known}
    offered = {label for _, label in usable}
    for new in sorted((set(label_sets.classes_in(offered)) if multi_label else offered) - set(known)):
        for near in get_close_matches(lookalike_key(new), names, n=1, cutoff=MISSPELT):
            if not any(map(str.isdecimal, new)):  # class 1 and class 2 are alike
                log.warning("%s: %r is a new class; if %r is meant, rename its folder", SPEC.path, new, names[near])


def move_files(delivery: Delivery, paths: Iterable[str], folder: str) -> None:
    """Move files of a delivery into a folder of the inbox, without overwriting existing files.

    Raises:
        SourceError: the store cannot be reached, or does not allow moving.
    """
    with _cleaning_up(delivery):
        _move_files(delivery, delivery.labelled, paths, lambda _, name: f"{folder}/{name}")


def label_files(delivery: Delivery, labels: Mapping[str, str]) -> None:
    """Move unlabelled files from <domain>/_unlabelled/ to <domain>/<class>/, without overwriting existing files.

    Args:
        delivery: that has them.
        labels: the class of each file, by path; a name of a folder.

    Raises:
        SourceError: the store cannot be reached, or does not allow moving.
    """

    def target(path: str, name: str) -> str:
        domain, _, *rest = name.split("/")
        return "/".join([domain, labels[path], *rest])

    try:
        _move_files(delivery, delivery.unlabelled, labels, target)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise SourceError(f"retrain.inbox: images of {delivery.url} cannot be moved to their classes: {why}") from error


def _move_files(delivery: Delivery, files: Files, paths: Iterable[str], target: Callable[[str, str], str]) -> None:
    """Move files; `target` returns the new name, of a path and the name on the store, both below the inbox."""
    if isinstance(delivery.store, LocalFileSystem):
        with SafeFolder(Path(delivery.root)) as inbox:
            for path, name, size, mtime in _local_entries(delivery, files, paths):
                inbox.move(name, target(path, name), size, mtime)
        return
    for path, place in _unchanged_places(delivery, files, paths):
        _move(delivery.store, place, _free_name(delivery.store, f"{delivery.root}/{target(path, path)}"))


def delete(delivery: Delivery, paths: Iterable[str]) -> None:
    """Delete files of a delivery.

    Raises:
        SourceError: the store cannot be reached, or does not allow deleting.
    """
    with _cleaning_up(delivery):
        if isinstance(delivery.store, LocalFileSystem):
            with SafeFolder(Path(delivery.root)) as inbox:
                for _, name, size, mtime in _local_entries(delivery, delivery.labelled, paths):
                    inbox.remove(name, size, mtime)
            return
        for _, place in _unchanged_places(delivery, delivery.labelled, paths):
            with suppress(FileNotFoundError):  # gone in this moment
                delivery.store.rm_file(place)


def _local_entries(delivery: Delivery, files: Files, paths: Iterable[str]) -> Iterator[tuple[str, str, int, int]]:
    """Yield local files: path, name on disk below the inbox, size and time at listing."""
    items = {item.path: item for item in files.items}
    for path in paths:
        if path in items and items[path].problem is None:
            size, _, mtime = items[path].stamp.partition(":")
            name = files.place(path).removeprefix(f"{delivery.root.rstrip('/')}/")
            yield path, name, int(size), int(mtime)


def _unchanged_places(delivery: Delivery, files: Files, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield remote files that are unchanged since listing; a replaced file belongs to the next delivery."""
    stamps = {item.path: item.stamp for item in files.items if item.problem is None}
    infos, place_of = _list(delivery.store, delivery.root, delivery.url)
    for path in paths:
        if path in infos and stamp_of(infos[path]) == stamps.get(path):
            yield path, place_of(path)


def _move(store: Any, place: str, target: str) -> None:  # noqa: ANN401
    store.makedirs(target.rpartition("/")[0], exist_ok=True)
    with suppress(FileNotFoundError):  # gone in this moment
        try:
            store.cp_file(place, target)  # `mv` treats brackets in a name as a pattern
            store.rm_file(place)
        except NotImplementedError:  # SFTP cannot copy
            store.mv(place, target)


@contextmanager
def _cleaning_up(delivery: Delivery) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise SourceError(
            f"retrain.after: {delivery.url} cannot be cleaned up: {type(error).__name__}: {error}. Ingested files are "
            "recognised next time; set retrain.after to keep to leave them there."
        ) from error


def _free_name(store: Any, path: str) -> str:  # noqa: ANN401
    """Return a path that does not exist yet, numbered if another delivery's file has the name."""
    pure = PurePosixPath(path)
    others = (str(pure.with_stem(f"{pure.stem}-{number}")) for number in count(2))
    return next(name for name in chain([path], others) if not store.exists(name))
