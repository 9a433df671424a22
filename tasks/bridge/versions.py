"""Call DVC: check whether a stage is up to date, restore or record it, keep a run as an experiment.

    python -m tasks.bridge.versions    # prepare the workspace for DVC

DVC's Python API beyond `dvc.api` may change: pyproject.toml pins its versions, and only this module, repair.py and
dvc_remote.py import it.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvc.rwlock
from dvc.exceptions import ConfirmRemoveError, DvcException
from dvc.repo import Repo
from dvc.repo.experiments.executor.base import BaseExecutor
from dvc.repo.experiments.refs import ExpRefInfo
from dvc.scm import SCM, SCMError
from dvc.stage.cache import RunCacheNotFoundError
from dvc_data.hashfile.hash_info import HashInfo
from scmrepo.exceptions import SCMError as GitError

from rootstock.system import causes, escape
from rootstock.system.errors import RootstockError
from rootstock.system.files import sha256, write
from tasks.bridge import cancellation, git, repair, workspace
from tasks.bridge.repair import LOCK as LOCK  # re-exported

log = logging.getLogger(__name__)
Inputs = dict[str, HashInfo]
ERRORS = (DvcException, GitError)  # raised by DVC and git for causes outside of them
ALWAYS = "always changed"
NAMED = 4  # changed files that a reason names at most
# DVC's lock works between processes; stages of a flow are threads.
_thread_lock = threading.RLock()
_opened: list[Repo] = []


@contextmanager
def repository() -> Iterator[Repo]:
    """Open the workspace's DVC repository exclusively: one thread at a time, and no other DVC command running.

    Raises:
        RootstockError: another DVC command has been running for an hour, or left damage that only a person can repair.
    """
    with _thread_lock, _quiet():
        if _opened:
            yield _opened[-1]
            return
        with _open() as repo:
            repair.acquire(repo.lock)
            repo._lock_depth += 1  # tells DVC's own functions that the lock is held
            _opened.append(repo)
            try:
                for done in repair.repair_all():
                    log.warning("%s", done)
                yield repo
            finally:
                _opened.pop()
                repo._lock_depth -= 1
                if (
                    repo.lock.is_locked
                ):  # else it was lent to another command (`_paths_free`), and the run ended meanwhile
                    repo.lock.unlock()


def _open() -> Repo:
    try:
        return Repo()
    except sqlite3.DatabaseError:
        log.warning("%s", repair.repair_state())
        return Repo()


@contextmanager
def _paths_free(
    tmp_dir: str, fs: object, cmd: str, read: list[str], write: list[str], hardlink: bool
) -> Iterator[None]:
    """Wait until no other DVC command reads or writes some paths; replaces dvc.rwlock.rwlock.

    DVC's version writes a file in place, which a kill truncates, and fails without waiting. The caller holds DVC's
    lock, so no entry is needed; the lock is released while waiting, so that the other command can end.
    """
    if not _opened:  # the command `dvc` (tasks/bridge/dvc_program.py)
        with _dvc_rwlock(tmp_dir, fs, cmd, read, write, hardlink):
            yield
        return
    lock = _opened[-1].lock

    def free() -> bool:
        if not repair.blockers(read, write):
            return True
        lock.unlock()
        cancellation.pause(workspace.POLL_S)
        repair.acquire(lock)
        return False

    repair.wait_until(free, lambda: f"Files that this run needs are in use by {_blockers(read, write)}", log.warning)
    yield


def _blockers(read: list[str], write: list[str]) -> str:
    return ", ".join(repair.blockers(read, write)) or "another DVC command"


_dvc_rwlock = dvc.rwlock.rwlock
dvc.rwlock.rwlock = _paths_free


@contextmanager
def locked(report: Callable[[str], None]) -> Iterator[None]:
    """Hold the workspace for this run alone, and repair what a killed one left behind.

    Args:
        report: called with a sentence for each wait and each repair.

    Raises:
        RootstockError: another run takes too long, or left damage that only a person can repair.
    """
    with workspace.writing(queue=report):
        for done in [*git.heal(), git.left_by_dvc()]:
            if done:
                report(done)
        repair.before_dvc(report)
        yield


@contextmanager
def not_recording(timeout_s: float) -> Iterator[None]:
    """Wait until no stage is being recorded, up to a timeout."""
    held = _thread_lock.acquire(timeout=timeout_s)
    try:
        yield
    finally:
        if held:
            _thread_lock.release()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence DVC's progress bars and hints, which are meant for its own command line."""
    logger = logging.getLogger("dvc")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def stale(stage: str) -> list[str]:
    """Return why a stage is not up to date, as `dvc status` does; empty if it is."""
    with repository() as repo:
        found = repo.status(targets=[stage]).get(stage, [])
        if found and not any(out.hash_info for out in repo.stage.load_one(name=stage).outs):
            return ["it has not run here yet"]
    return [entry if isinstance(entry, str) else _describe(*next(iter(entry.items()))) for entry in found]


def _describe(kind: str, paths: Collection[str]) -> str:
    """Name the first changed paths and the number of the rest."""
    named = list(paths)[:NAMED]
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"{kind}: {', '.join(named)}{more}"


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

    Raises:
        RootstockError: neither the cache nor the remote has them.
    """
    with repository() as repo:
        before = LOCK.read_bytes() if LOCK.exists() else None
        write(LOCK, lock)
        try:
            with causes.described():
                _check_out(repo)
        except (DvcException, RootstockError) as error:
            if before is not None:  # a new Repo: the other has read this lock
                write(LOCK, before)
                with suppress(DvcException):
                    Repo().checkout(force=True, allow_missing=True)
            raise RootstockError(f"The data of this version cannot be restored: {error}") from error
        repair.note_lock()


def _check_out(repo: Repo) -> None:
    try:
        repo.checkout(force=True)
    except DvcException:  # perhaps the cache was emptied
        repo.fetch()
        repo.checkout(force=True)


@dataclass(frozen=True)
class SavedExperiment:
    """The experiment that keeps a run: name and git revision, or why there is none."""

    name: str | None
    note: str
    revision: str | None = None


def save_experiment(run: str) -> SavedExperiment:
    """Save the workspace as an experiment, named after a run as far as git allows.

    Like `dvc exp save`, but without touching the working tree, which that command empties for a moment: edits stay
    where they are. Saves what DVC has recorded, and records nothing.
    """
    name = escape.file_name(run)
    with repository() as repo:
        if not has_commits(Path(repo.root_dir)):
            return SavedExperiment(
                None, "Not kept as an experiment: the workspace is not a git repository with a commit."
            )
        try:
            message = f"dvc: commit experiment {BaseExecutor.hash_exp(repo.index.stages)}"
            head = git.head()
            revision = git.commit_of_working_tree(head, message, _beside_tracked(repo))
            git.set_ref(str(ExpRefInfo(head, name)), revision)
        except (DvcException, RootstockError, OSError) as error:  # e.g. no user name and email
            return SavedExperiment(None, f"Not kept as an experiment: {error}")
    note = f"Kept as experiment {name}: `dvc exp show` compares, `dvc exp apply {name}` brings it back."
    return SavedExperiment(name, note, revision)


def _beside_tracked(repo: Repo) -> list[Path]:
    """List files of an experiment that git may not track: dvc.lock, and the metrics and plots of dvc.yaml."""
    shown = (Path(path) for path in BaseExecutor._get_top_level_paths(repo))
    outputs = [Path(out.def_path) for out in repo.index.outs if out.is_in_repo]
    return [LOCK, *(path for path in shown if not any(path.is_relative_to(out) for out in outputs))]


def save_what_repro_left() -> SavedExperiment | None:
    """Save the results of a `dvc repro` as an experiment, unless one has them, before a flow replaces them."""
    if not LOCK.exists() or is_kept(LOCK):
        return None
    with repository() as repo:
        finished = all(entries == [ALWAYS] for entries in repo.status().values())
    return save_experiment(f"repro-{sha256(LOCK)[:7]}") if finished else None


def is_kept(path: Path) -> bool:
    """Whether git has a file exactly as it is, in the last commit or an experiment based on it."""
    return revision_with(path) is not None


def revision_with(path: Path) -> str | None:
    """Find a revision that has a file exactly as it is: the last commit, or an experiment based on it."""
    with repository() as repo:
        if not has_commits(Path(repo.root_dir)):
            return None
        experiments = [revision for found in repo.experiments.ls().values() for _, revision in found]
        having = (rev for rev in ["HEAD", *experiments] if _in_git(repo, rev, path) == path.read_bytes())
        return next(having, None)


def committed(path: Path) -> bytes | None:
    """Return the content of a file in the last commit, if any."""
    with repository() as repo:
        return _in_git(repo, "HEAD", path) if has_commits(Path(repo.root_dir)) else None


def _in_git(repo: Repo, revision: str, path: Path) -> bytes | None:
    try:
        content: bytes = repo.scm.get_fs(revision).cat_file(str(path))
    except FileNotFoundError:
        return None
    return content


def tag(name: str, revision: str | None, message: str) -> str | None:
    """Tag a revision, by default the last commit; return the tag, or None without a git repository."""
    with repository() as repo:
        if not has_commits(Path(repo.root_dir)):
            return None
        try:
            if not git.has_tag(name):
                git.tag(name, revision or git.head(), message)
        except RootstockError as error:  # e.g. no user name and email
            log.warning("%s is not tagged: %s", name, error)
            return None
    return name


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


def has_commits(root: Path) -> bool:
    """Whether a folder is the root of a git repository with at least one commit."""
    try:
        git = SCM(str(root), search_parent_directories=False)
        return bool(git.get_rev())
    except SCMError:
        return False
    except Exception as error:  # no commit yet: each git backend raises another error
        log.debug("no commit in %s: %s", root, error)
        return False


def prepare(root: Path = Path()) -> None:
    """Configure DVC for a folder with or without a git repository (an unpacked archive has none)."""
    from dvc.config import Config

    config = Config(str(root / ".dvc"), validate=False)
    in_git = (root / ".git").exists()
    with config.edit("local") as local:
        core = local.setdefault("core", {})
        if in_git:
            core.pop("no_scm", None)
        else:
            core["no_scm"] = True


if __name__ == "__main__":
    prepare()
