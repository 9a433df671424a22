"""Check whether a stage is up to date, restore or record it, and bring back or push versions of the data, by DVC.

python -m tasks.bridge.versions    # prepare the workspace for DVC
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dvc.config import NoRemoteError
from dvc.exceptions import ConfirmRemoveError, DvcException
from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError
from dvc_data.hashfile.hash_info import HashInfo
from scmrepo.exceptions import SCMError as GitError

from rootstock.system import causes
from rootstock.system.errors import RootstockError
from rootstock.system.files import write
from rootstock.system.phrases import listed
from tasks.bridge import dvc_plots_page, repair
from tasks.bridge.dvc_repository import repository
from tasks.bridge.lock_file import LOCK
from tasks.bridge.workspace import PARAMS

log = logging.getLogger(__name__)
Inputs = dict[str, HashInfo]
ERRORS = (DvcException, GitError)  # raised by DVC and git for causes outside of them
ALWAYS = "always changed"
NAMED = 4  # changed files that a reason names at most


def stale(stage: str) -> list[str]:
    """Return why a stage is not up to date, as `dvc status` does; empty if it is."""
    with repository() as repo:
        found = repo.status(targets=[stage]).get(stage, [])
        if found and not any(out.hash_info for out in repo.stage.load_one(name=stage).outs):
            return ["it has not run here yet"]
    return [entry if isinstance(entry, str) else _describe(*next(iter(entry.items()))) for entry in found]


def _describe(kind: str, paths: Collection[str]) -> str:
    """Name the first changed paths and the number of the rest."""
    return f"{kind}: {listed(list(paths), NAMED)}"


def restore(stage: str) -> bool:
    """Restore the outputs of an earlier run of a stage with the same parameters and inputs, if DVC has them."""
    with repository() as repo:
        try:
            try:
                repo.stage_cache.restore(repo.stage.load_one(name=stage))
            except ConfirmRemoveError:
                # Outputs of a killed run of this stage, never recorded: replace them.
                repo.stage.load_one(name=stage).remove_outs(force=True)
                repo.stage_cache.restore(repo.stage.load_one(name=stage))
        except RunCacheNotFoundError:
            return False
    commit(stage)
    return True


def inputs_of(stage: str) -> Inputs:
    """Return the current dependencies of a stage: digests of files and values of parameters, by path."""
    with repository() as repo:
        found = repo.stage.load_one(name=stage)
        found.save_deps()
        return {dep.def_path: dep.hash_info for dep in found.deps}


def commit(stage: str, ran_with: Inputs | None = None) -> list[str]:
    """Record a stage's parameters, inputs and outputs in dvc.lock, and its outputs in the cache.

    Args:
        stage: of dvc.yaml.
        ran_with: its dependencies when it started; None: the current ones.

    Returns:
        A sentence per dependency that changed since; what it ran with is recorded, so it is not up to date.
    """
    with repository() as repo:
        found = repo.stage.load_one(name=stage)
        found.save_deps()
        changed: list[str] = []
        for dep in found.deps:
            then = ran_with[dep.def_path] if ran_with else dep.hash_info
            changed += _changes(dep.def_path, then, dep.hash_info)
            dep.hash_info = then
        found.save_outs()
        found.md5 = found.compute_md5()
        repo.stage_cache.save(found)
        found.commit()
        found.dump(update_pipeline=False)
        repair.note_lock()
    return changed


def _changes(path: str, then: HashInfo, now: HashInfo) -> list[str]:
    """Describe how a dependency differs: old and new values of parameters, or the path."""
    old: Any = then.value
    new: Any = now.value
    if isinstance(old, dict):
        return _differences("", old, new)
    return [] if then == now else [f"{path} was changed"]


def _differences(key: str, old: Any, new: Any) -> list[str]:  # noqa: ANN401
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        inner = (_differences(f"{key}.{name}" if key else name, old.get(name), new.get(name)) for name in keys)
        return [change for changes in inner for change in changes]
    return [] if old == new else [f"{key} was {old}, is {new}"]


@contextmanager
def changing(*paths: Path, equivalent: bool) -> Iterator[None]:
    """Update dvc.lock for outputs that the block changes, if they were as recorded before.

    Outputs that were not as recorded stay stale; so do all if the block fails.

    Args:
        paths: outputs that the block changes.
        equivalent: the stages that read them would produce the same results, so they stay up to date.
    """
    with repository() as repo:
        recorded = {
            stage.addressing: [entry.def_path for entry in [*stage.outs, *(stage.deps if equivalent else ())]
                               if Path(entry.def_path) in paths and not entry.workspace_status()]
            for stage in repo.index.stages
        }  # fmt: skip
    yield
    with repository() as repo:
        for stage in repo.index.stages:
            changed = recorded[stage.addressing]
            for entry in [*stage.deps, *stage.outs]:
                if entry.def_path in changed:
                    entry.save()
            for output in stage.outs:
                if output.def_path in changed:
                    output.commit()
            if changed:
                stage.dump(update_pipeline=False)


def restore_recorded(*paths: Path) -> list[str]:
    """Restore outputs that differ from what dvc.lock records: damaged, foreign, or left by a killed run.

    Returns:
        A sentence for each.

    Raises:
        RootstockError: they are not in the cache.
    """
    restored = []
    with repository() as repo:
        for out in (out for stage in repo.index.stages for out in stage.outs if Path(out.def_path) in paths):
            if not (out.hash_info and out.workspace_status()):
                continue
            if out.changed_cache():  # DVC would remove the output before noticing
                raise RootstockError(
                    f"{out.def_path} is not what {LOCK} records, and DVC's cache lacks the recorded version. "
                    "Fetch it (`dvc fetch`), or run the pipeline."
                )
            out.checkout(force=True)
            restored.append(f"{out.def_path} was not what {LOCK} records; restored it from DVC's cache.")
    return restored


def add(path: Path) -> None:
    """Record files that are not the output of a stage, in `<path>.dvc` and in the cache."""
    with repository() as repo:
        repo.add(str(path))


def restore_version(lock: str) -> None:
    """Restore the data that a dvc.lock records.

    Nothing in the workspace is touched before all of them are in the cache; if they cannot be written, say to a full
    disk, the present version is put back.

    Raises:
        RootstockError: neither the cache nor the remote has them.
    """
    with repository() as repo:
        before, touched = LOCK.read_bytes() if LOCK.exists() else None, False
        write(LOCK, lock)
        try:
            with causes.described():
                _fetch_missing(repo)
                touched = True
                repo.checkout(force=True)
        except (DvcException, RootstockError) as error:
            if before is None:
                LOCK.unlink(missing_ok=True)
            else:
                write(LOCK, before)
                repo._reset()  # it has read the other dvc.lock
                with suppress(DvcException, OSError):
                    if touched:
                        repo.checkout(force=True, allow_missing=True)
            raise RootstockError(f"The data of this version cannot be restored: {error}") from error
        repair.note_lock()


def _fetch_missing(repo: Repo) -> None:
    """Fetch what dvc.lock records and the cache lacks, if anything.

    Raises:
        RootstockError: there is no remote, or it lacks them, too.
    """
    if not _missing(repo):
        return
    with suppress(NoRemoteError):
        repo.fetch()
    if missing := _missing(repo):
        listed = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        raise RootstockError(f"neither DVC's cache nor a remote has its {listed}. The workspace is as it was.")


def _missing(repo: Repo) -> list[str]:
    """Return the recorded outputs that the cache lacks, at least in part."""
    repo._reset()  # it may have read another dvc.lock
    outs = [out for stage in repo.index.stages for out in stage.outs]
    return sorted(out.def_path for out in outs if out.hash_info and out.use_cache and out.changed_cache())


def push() -> None:
    """Push all data of the workspace to the default remote.

    Raises:
        RootstockError: there is no remote, or the push failed.
    """
    with repository() as repo:
        try:
            with causes.described():
                repo.push()
        except (DvcException, RootstockError) as error:
            raise RootstockError(f"The data cannot be pushed: {error}") from error


def is_probably_stale() -> bool:
    """Whether params.yaml is newer than the last run: of what can make a stage stale, the cheapest to look at."""
    return not LOCK.exists() or PARAMS.stat().st_mtime > LOCK.stat().st_mtime


def prepare(root: Path = Path()) -> None:
    """Configure DVC for a folder, with its page for plots, with or without a git repository (an archive has none)."""
    from dvc.config import Config

    folder = root / ".dvc"
    dvc_plots_page.prepare(folder)
    config = Config(str(folder), validate=False)
    in_git = (root / ".git").exists()
    with config.edit("local") as local:
        core = local.setdefault("core", {})
        if in_git:
            core.pop("no_scm", None)
        else:
            core["no_scm"] = True
        local["plots"] = {"html_template": str(dvc_plots_page.PAGE)}


if __name__ == "__main__":
    prepare()
