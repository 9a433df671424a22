"""Versions of the data that nothing needs any more: what no commit, tag, experiment or champion refers to.

`dvc gc` alone does not know the champions of a workspace without git, whose dvc.lock is in the history.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dvc.repo import Repo
from dvc.scm import NoSCM
from dvc_data.hashfile.db import HashFileDB
from dvc_data.hashfile.gc import gc
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError

from rootstock.features.cache import format_bytes
from rootstock.model import history
from rootstock.system.errors import RootstockError
from tasks.bridge import champion, handoff, lock_file, repair
from tasks.bridge.dvc_repository import repository
from tasks.bridge.workspace import HISTORY, LOCAL

EVERYWHERE = {"all_commits": True, "all_branches": True, "all_tags": True, "all_experiments": True}


@dataclass(frozen=True)
class Unused:
    """Files of DVC's cache that nothing refers to, and their bytes."""

    files: int
    bytes: int

    def describe(self) -> str:
        """Return it as text."""
        return f"{self.files:,} files ({format_bytes(self.bytes)})"


def find() -> Unused:
    """Find what `remove` would remove.

    Raises:
        RootstockError: the cache is outside of the workspace, or a run that was handed over here is using it.
    """
    with repository() as repo:
        _check(repo)
        return _unused(repo, _used(repo))


def remove() -> Unused:
    """Remove from this machine's cache what nothing refers to, and return it; the remote keeps it.

    Raises:
        RootstockError: as `find`.
    """
    with repository() as repo:
        _check(repo)
        used = _used(repo)
        unused = _unused(repo, used)
        for odb in _caches(repo):
            gc(odb, [HashInfo(odb.hash_name, oid) for oid in used])
    return unused


def _check(repo: Repo) -> None:
    folder = Path(repo.cache.local.path).resolve()
    if not folder.is_relative_to(Path.cwd()):
        raise RootstockError(
            f"DVC's cache is {folder}, outside of this workspace, where other projects may use it, too. Nothing was "
            "removed; `dvc gc` with --projects removes what none of them needs."
        )
    handoff.sweep(handoff.RUNS)
    if handoff.RUNS.exists() and any(handoff.RUNS.iterdir()):
        raise RootstockError(
            f"A run that was handed over to this clone is using DVC's cache ({handoff.RUNS}): try again later."
        )


def _unused(repo: Repo, used: set[str]) -> Unused:
    paths = [(odb, odb.oid_to_path(oid)) for odb in _caches(repo) for oid in odb.all() if oid not in used]
    return Unused(len(paths), sum(int(odb.fs.size(path) or 0) for odb, path in paths))


def _caches(repo: Repo) -> list[HashFileDB]:
    return list({odb.path: odb for _, odb in repo.cache.by_scheme() if odb}.values())


def _used(repo: Repo) -> set[str]:
    """Return the digests of all files that the workspace, a commit, a tag, an experiment or a champion refers to.

    Of a folder whose list of files neither the cache nor the remote has, they are not known; nothing restores it.
    """
    revisions = {} if isinstance(repo.scm, NoSCM) else EVERYWHERE
    used = repo.used_objs(force=True, **revisions)  # else DVC asks, or fails, where a list is missing
    found = {info.value for infos in used.values() for info in infos if info.value}
    local = repo.cache.local
    for digest in set(_recorded()) - found:
        found.add(digest)
        if digest.endswith(".dir"):
            try:
                found.update(info.value for _, _, info in Tree.load(local, HashInfo(local.hash_name, digest)) if info)
            except (FileNotFoundError, ObjectFormatError):
                continue  # not on this machine
    return found


def _recorded() -> Iterator[str]:
    """Yield the digests in the dvc.lock of each champion, of one set aside, and of the last intact one."""
    rows = history.read(HISTORY.parent, LOCAL)
    locks = {f"{HISTORY}: dvc.lock of v{row.version}": row.lock for row in rows if row.lock}
    files = (champion.ASIDE / lock_file.LOCK.name, repair.INTACT)
    locks |= {str(path): path.read_text() for path in files if path.exists()}
    for where, text in locks.items():
        for stage in lock_file.stages_in(text, where).values():
            yield from (file["md5"] for file in [*stage.get("deps", []), *stage.get("outs", [])] if "md5" in file)
