"""The inbox: a folder, on any store that fsspec reaches, in which images arrive as <domain>/<class>/<file>.

Folders whose names begin with an underscore are no domains and no classes: <domain>/_unlabelled holds what has no label
yet, and what earlier runs were done with lies in _taken and _rejected. Links are not followed, and a folder that looks
like anything else than an inbox is none.
"""

import os
import pwd
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from rootstock.config import params
from rootstock.images.inspection import MAX_FILE_BYTES, Reason
from rootstock.images.pixels import format_by_name
from rootstock.ingest import deciding, folders, layout
from rootstock.ingest.folders import Files, Info, stamp_of
from rootstock.ingest.labels import clean
from rootstock.ingest.layout import SPLITS, Item, Layout
from rootstock.ingest.litter import is_litter, is_litter_name
from rootstock.ingest.undecided import Undecided
from rootstock.system import roots
from rootstock.system.addresses import WRAPPERS, links
from rootstock.system.errors import SourceError
from rootstock.system.safe_folder import SafeFolder
from rootstock.system.stores import open_store

SPEC = params.Source(path="retrain.inbox", domain="inbox")  # what the data call it
UNLABELLED, TAKEN, REJECTED = "_unlabelled", "_taken", "_rejected"
DEFAULT = "data/inbox"  # the one place in a workspace
PEOPLE = {0, *range(1000, 60_000)}  # user ids of those who have homes
SYSTEM = {Path(f"/{name}") for name in ("home", "media", "mnt", "opt", "root", "run", "srv", "tmp", "var", "Users")}
SYSTEM_ALL = {Path(f"/{name}") for name in ("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "sbin", "sys", "usr")}
EXPECTED = "expected a folder of its own, in which images arrive as <domain>/<class>/<image>"
NAMED = 3  # files that a refusal names


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


def look(url: str, settle_seconds: float, sources: Iterable[params.Source] = ()) -> Delivery:
    """List an inbox twice, and give what did not change in between; an inbox that is not there is empty.

    Args:
        url: of the inbox.
        settle_seconds: between the two looks.
        sources: those that are taken in as well: none of their files is the inbox's.

    Raises:
        SourceError: its store does not answer, it is a file, or it is no inbox, but a folder of other things.
    """
    try:
        _refuse_wrapped(url)
        store, root = open_store(url)
        root = root.rstrip("/")
        if isinstance(store, LocalFileSystem):
            root = os.path.realpath(root or "/")
            _refuse_by_place(Path(root), url)
        _refuse_shared(url, sources)
        first, _ = _list(store, root, url)
        if first:
            time.sleep(settle_seconds)
        second, place_of = _list(store, root, url)
    except SourceError:
        raise
    except Exception as error:  # every driver has its own errors for a store that does not answer
        raise SourceError(f"retrain.inbox: {url} cannot be reached: {type(error).__name__}: {error}") from error
    settled = {path: info for path, info in second.items() if path in first and stamp_of(first[path]) == stamp_of(info)}
    items = [_item(path, info) for path, info in sorted(settled.items())]
    items = layout.without_huge(items, lambda path: settled[path].get("size"))
    _refuse_by_content(items, url)

    def read_here(place: str) -> bytes:
        with SafeFolder(Path(root)) as inbox:
            return inbox.read(place.removeprefix(f"{root.rstrip('/')}/"), MAX_FILE_BYTES)

    def files(*, labelled: bool) -> Files:
        chosen = [item for item in items if (item.label != UNLABELLED) == labelled]
        return Files(store, chosen, [], place_of, read_here=read_here)

    return Delivery(url, store, root, files(labelled=True), files(labelled=False), len(second) - len(settled))


def _refuse_wrapped(url: str) -> None:
    """Refuse what is seen through a cache or an archive: which files that would move or remove nobody sees.

    Raises:
        SourceError: it is.
    """
    if wrapped := [link.protocol for link in links(url) if link.protocol in WRAPPERS]:
        raise SourceError(f"retrain.inbox: {url} lies behind {wrapped[0]}: {EXPECTED}.")


def _refuse_shared(url: str, sources: Iterable[params.Source]) -> None:
    """Refuse what holds files of a source, or lies in one.

    Raises:
        SourceError: it does.
    """
    here = os.path.expanduser(url)  # noqa: PTH111 - or a URL
    for source in sources:
        there = os.path.expanduser(source.path)  # noqa: PTH111 - or a URL
        if roots.allows(here, [there]) or roots.allows(there, [here]):
            raise SourceError(f"retrain.inbox: {url} shares its files with the source {source.path}: {EXPECTED}.")


def _refuse_by_place(root: Path, url: str) -> None:
    """Refuse a folder of this machine that cannot be an inbox, so that nothing in it is ever moved or removed.

    Raises:
        SourceError: it is, or holds, the workspace, a home or a part of the system; it is in the workspace elsewhere
            than data/inbox.
    """
    workspace = Path.cwd().resolve()
    homes = {Path.home().resolve(), *(Path(user.pw_dir) for user in pwd.getpwall() if user.pw_uid in PEOPLE)}
    if root == Path(root.anchor):
        why = "is the root of the file system"
    elif any(root == home or root in home.parents for home in homes):
        why = "is a home folder, or holds one"
    elif root in SYSTEM or any(root.is_relative_to(place) for place in SYSTEM_ALL):
        why = "belongs to the system"
    elif root == workspace or root in workspace.parents:
        why = "holds the workspace"
    elif root.is_relative_to(workspace) and not root.is_relative_to(workspace / DEFAULT):
        why = f"lies in the workspace elsewhere than {DEFAULT}"
    else:
        return
    raise SourceError(f"retrain.inbox: {url} {why}: {EXPECTED}.")


def _refuse_by_content(items: list[Item], url: str) -> None:
    """Refuse a folder that holds mostly other things than images in class folders of a domain.

    Raises:
        SourceError: it does.
    """
    filed = [item.path for item in items if item.problem in (None, Reason.TOO_LARGE)]
    named_so = [path for path in filed if format_by_name(path)]
    images = len(named_so or filed)  # without extensions, any file may be one
    stems = {PurePosixPath(path).with_suffix("") for path in named_so}
    others = sorted(  # 17.json beside 17.jpg is about it
        path
        for path in {item.path for item in items} - set(named_so or filed)
        if PurePosixPath(path).with_suffix("") not in stems
    )
    if len(others) > images:
        named = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
        raise SourceError(
            f"retrain.inbox: {url} holds {len(others)} files that are no images in <domain>/<class>/ ({named}), and "
            f"{images} that are: {EXPECTED}. Nothing was touched."
        )


def _list(store: Any, root: str, url: str) -> tuple[dict[str, Info], Callable[[str], str]]:  # noqa: ANN401
    """List the files of all domains, by their path in the inbox, and say where in the store such a path lies.

    Beside the domains, only files that are called images are anybody's delivery: there may be a README. A link is what
    it is, a file like others; nothing behind it is the inbox's.
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
        if place == root or name.startswith("_") or is_litter_name(name):
            continue
        if info.get("islink"):
            found[place] = {"type": "link"}
        elif store.isdir(place):
            found |= folders.find(store, place, follow=False)
        elif format_by_name(name):
            found[place] = info
    infos, place_of = folders.named(found, root, url)
    # A name that ends in a slash is an empty folder.
    return {path: infos[path] for path in infos if not path.endswith("/") and not is_litter(path)}, place_of


def _item(path: str, info: Info) -> Item:
    domain, label, *_ = (*path.split("/")[:-1], "", "")
    if label.startswith("_") and label != UNLABELLED:
        label = ""
    problem = None if label else Reason.NO_LABEL
    if not layout.is_image_name(path):
        problem = Reason.NOT_AN_IMAGE
    if info.get("type") == "link":
        problem = Reason.UNSAFE_PATH
    return Item(path, clean(label), domain, SPLITS, stamp_of(info), problem)


def check_classes(items: Iterable[Item], known: Collection[str]) -> None:
    """Stop where a delivered folder is hardly a new class.

    Args:
        items: what was delivered, with labels.
        known: the classes of the data set.

    Raises:
        SourceError: it has the name of a split or of masks, or holds folders that are classes.
    """
    folders_of = Counter(layout.parts_of(item.path.rpartition("/")[0]) for item in items if not item.problem)
    try:
        deciding.check_new_classes(folders_of, Layout(layout.ANY), known, SPEC.path)
    except Undecided as error:
        raise SourceError(
            f"{SPEC.path}: {error.seen}; {EXPECTED}. A class of such a name can be taken in from ingest.sources, where "
            "its layout can be said."
        ) from None


def put_away(delivery: Delivery, paths: Iterable[str], folder: str) -> None:
    """Move files of a delivery into a folder of the inbox; one that lies there under a name keeps it.

    Raises:
        SourceError: the store does not answer, or lets nothing be moved.
    """
    with _tidying(delivery):
        if isinstance(delivery.store, LocalFileSystem):
            with SafeFolder(Path(delivery.root)) as inbox:
                for name, size, mtime in _here(delivery, paths):
                    inbox.move(name, f"{folder}/{name}", size, mtime)
            return
        for path, place in _still_there(delivery, paths):
            _move(delivery.store, place, _free(delivery.store, f"{delivery.root}/{folder}/{path}"))


def delete(delivery: Delivery, paths: Iterable[str]) -> None:
    """Remove files of a delivery.

    Raises:
        SourceError: the store does not answer, or lets nothing be removed.
    """
    with _tidying(delivery):
        if isinstance(delivery.store, LocalFileSystem):
            with SafeFolder(Path(delivery.root)) as inbox:
                for name, size, mtime in _here(delivery, paths):
                    inbox.remove(name, size, mtime)
            return
        for _, place in _still_there(delivery, paths):
            with suppress(FileNotFoundError):  # gone in this moment
                delivery.store.rm_file(place)


def _here(delivery: Delivery, paths: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """Name files of this machine below the inbox, with the size and time they were delivered with."""
    items = {item.path: item for item in delivery.labelled.items}
    for path in paths:
        if path in items and items[path].problem is None:
            size, _, mtime = items[path].stamp.partition(":")
            name = delivery.labelled.place(path).removeprefix(f"{delivery.root.rstrip('/')}/")
            yield name, int(size), int(mtime)


def _still_there(delivery: Delivery, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name files of a store that still are what was delivered; one that was replaced is of the next delivery."""
    stamps = {item.path: item.stamp for item in delivery.labelled.items if item.problem is None}
    infos, place_of = _list(delivery.store, delivery.root, delivery.url)
    for path in paths:
        if path in infos and stamp_of(infos[path]) == stamps.get(path):
            yield path, place_of(path)


def _move(store: Any, place: str, target: str) -> None:  # noqa: ANN401
    store.makedirs(target.rpartition("/")[0], exist_ok=True)
    with suppress(FileNotFoundError):  # gone in this moment
        try:
            store.cp_file(place, target)  # to `mv`, a name with brackets is a pattern
            store.rm_file(place)
        except NotImplementedError:  # SFTP cannot copy
            store.mv(place, target)


@contextmanager
def _tidying(delivery: Delivery) -> Iterator[None]:
    try:
        yield
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
