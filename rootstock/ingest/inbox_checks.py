"""Refuse folders that cannot be an inbox, so that no other files are ever moved or deleted."""

import os
import pwd
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from rootstock.config import params
from rootstock.images.inspection import Reason
from rootstock.images.pixels import format_by_name
from rootstock.ingest.layout import Item
from rootstock.system import roots
from rootstock.system.addresses import WRAPPERS, links
from rootstock.system.errors import SourceError

DEFAULT = "data/inbox"  # the only inbox location allowed within a workspace
ROOT_ID, USER_IDS = 0, range(1000, 60_000)  # user ids of accounts with home folders
SYSTEM = {Path(f"/{name}") for name in ("home", "media", "mnt", "opt", "root", "run", "srv", "tmp", "var", "Users")}
SYSTEM_TREES = {
    Path(f"/{name}") for name in ("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "sbin", "sys", "usr")
}
EXPECTED = "expected a dedicated folder, where images arrive as <domain>/<class>/<image>"
MAX_LISTED = 3  # files that an error lists


def refuse_wrapped(url: str) -> None:
    """Refuse a URL through a cache or an archive, where it is unclear which files would be moved or removed.

    Raises:
        SourceError: the URL is chained like this.
    """
    if wrapped := [link.protocol for link in links(url) if link.protocol in WRAPPERS]:
        raise SourceError(f"retrain.inbox: {url} is chained through {wrapped[0]}: {EXPECTED}.")


def refuse_shared(url: str, sources: Iterable[params.Source]) -> None:
    """Refuse an inbox that contains a source or lies within one.

    Raises:
        SourceError: it does.
    """
    here = os.path.expanduser(url)  # noqa: PTH111 - or a URL
    for source in sources:
        there = os.path.expanduser(source.path)  # noqa: PTH111 - or a URL
        if roots.allows(here, [there]) or roots.allows(there, [here]):
            raise SourceError(f"retrain.inbox: {url} shares files with the source {source.path}: {EXPECTED}.")


def refuse_by_place(root: Path, url: str) -> None:
    """Refuse a local folder that cannot be an inbox, so that nothing in it is ever moved or removed.

    Raises:
        SourceError: it is or contains the workspace, a home or a system folder, or lies in the workspace but not in
            data/inbox.
    """
    workspace = Path.cwd().resolve()
    homes = {
        Path.home().resolve(),
        *(Path(user.pw_dir) for user in pwd.getpwall() if user.pw_uid == ROOT_ID or user.pw_uid in USER_IDS),
    }
    if root == Path(root.anchor):
        why = "is the root of the file system"
    elif any(root == home or root in home.parents for home in homes):
        why = "is or contains a home folder"
    elif root in SYSTEM or any(root.is_relative_to(place) for place in SYSTEM_TREES):
        why = "is a system folder"
    elif root == workspace or root in workspace.parents:
        why = "contains the workspace"
    elif root.is_relative_to(workspace) and not root.is_relative_to(workspace / DEFAULT):
        why = f"lies in the workspace, but not in {DEFAULT}"
    else:
        return
    raise SourceError(f"retrain.inbox: {url} {why}: {EXPECTED}.")


def refuse_by_content(items: list[Item], url: str) -> None:
    """Refuse a folder that mostly contains something other than images in <domain>/<class>/.

    Raises:
        SourceError: it does.
    """
    filed = [item.path for item in items if item.problem in (None, Reason.TOO_LARGE)]
    named_so = [path for path in filed if format_by_name(path)]
    images = len(named_so or filed)  # without extensions, any file may be an image
    stems = {PurePosixPath(path).with_suffix("") for path in named_so}
    others = sorted(  # 17.json next to 17.jpg describes it
        path
        for path in {item.path for item in items} - set(named_so or filed)
        if PurePosixPath(path).with_suffix("") not in stems
    )
    if len(others) > images:
        named = ", ".join(others[:MAX_LISTED]) + (", ..." if len(others) > MAX_LISTED else "")
        raise SourceError(
            f"retrain.inbox: {url} holds {len(others):,} files other than images in <domain>/<class>/ ({named}), but "
            f"only {images:,} images: {EXPECTED}. Nothing was changed."
        )
