"""Every call into DVC: is a stage up to date, can it be restored, record what it did, keep the run as an experiment.

    python -m tasks.bridge.versions    # make the workspace ready for DVC

DVC's Python API beyond `dvc.api` is not promised to be stable: pyproject.toml pins the range, and nothing but
this module, repair.py and dvc_remote.py imports it.
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
from tasks.bridge.repair import LOCK as LOCK  # where others look for it

log = logging.getLogger(__name__)
Inputs = dict[str, HashInfo]
ERRORS = (DvcException, GitError)  # what DVC and git raise where something outside of them is at fault
ALWAYS = "always changed"
NAMED = 4  # changed files that a reason names; a first run has all of them
# One at a time: DVC's lock is for processes, and stages of a flow are threads.
_one_at_a_time = threading.RLock()
_opened: list[Repo] = []


@contextmanager
def repository() -> Iterator[Repo]:
    """Open the workspace's DVC repository alone: one thread at a time, and no other DVC command at work.

    Raises:
        RootstockError: another DVC command has been at work for an hour, or left what only a person can mend.
    """
    with _one_at_a_time, _quiet():
        if _opened:
            yield _opened[-1]
            return
        with _open() as repo:
            repair.take(repo.lock)
            repo._lock_depth += 1  # what DVC's own functions go by: they need not take it
            _opened.append(repo)
            try:
                for said in repair.mend():
                    log.warning("%s", said)
                yield repo
            finally:
                _opened.pop()
                repo._lock_depth -= 1
                if repo.lock.is_locked:  # else it was lent to another command (`_free`), and the run ends meanwhile
                    repo.lock.unlock()


def _open() -> Repo:
    try:
        return Repo()
    except sqlite3.DatabaseError:
        log.warning("%s", repair.mend_state())
        return Repo()


@contextmanager
def _free(tmp_dir: str, fs: object, cmd: str, read: list[str], write: list[str], hardlink: bool) -> Iterator[None]:
    """Wait until no other DVC command reads or writes some paths: in the place of dvc.rwlock.rwlock.

    That writes a file in place, which a kill cuts, and gives up at once. Whoever is here holds DVC's lock, so there is
    nobody to tell; to let the other command end, the lock is lent to it while waiting.
    """
    if not _opened:  # DVC's own program, in tasks/bridge/dvc_program.py
        with _of_dvc(tmp_dir, fs, cmd, read, write, hardlink):
            yield
        return
    lock = _opened[-1].lock

    def free() -> bool:
        if not repair.blockers(read, write):
            return True
        lock.unlock()
        cancellation.pause(workspace.LOOK_S)
        repair.take(lock)
        return False

    repair.wait_until(
        free, lambda: f"What this run is about to write or read is used by {_who(read, write)}", log.warning
    )
    yield


def _who(read: list[str], write: list[str]) -> str:
    return ", ".join(repair.blockers(read, write)) or "another DVC command"


_of_dvc = dvc.rwlock.rwlock
dvc.rwlock.rwlock = _free


@contextmanager
def turn(say: Callable[[str], None]) -> Iterator[None]:
    """Be the only run that writes in this workspace, after what a killed one left is mended.

    Args:
        say: called with a sentence for what is waited for, and for what is mended.

    Raises:
        RootstockError: another one has been at it for long, or left what only a person can mend.
    """
    with workspace.writing(queue=say):
        for said in [*git.heal(), git.left_by_dvc()]:
            if said:
                say(said)
        repair.before_dvc(say)
        yield


@contextmanager
def at_rest(timeout_s: float) -> Iterator[None]:
    """Wait until no stage is being recorded, but not for ever."""
    held = _one_at_a_time.acquire(timeout=timeout_s)
    try:
        yield
    finally:
        if held:
            _one_at_a_time.release()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep DVC's progress bars and advice, meant for its own command line, off the terminal."""
    logger = logging.getLogger("dvc")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def stale(stage: str) -> list[str]:
    """Say why a stage is not up to date, as `dvc status` does; nothing where it is."""
    with repository() as repo:
        found = repo.status(targets=[stage]).get(stage, [])
        if found and not any(out.hash_info for out in repo.stage.load_one(name=stage).outs):
            return ["it has not run here yet"]
    return [entry if isinstance(entry, str) else _say(*next(iter(entry.items()))) for entry in found]


def _say(kind: str, paths: Collection[str]) -> str:
    """Name what changed, and if that is much, how much."""
    named = list(paths)[:NAMED]
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"{kind}: {', '.join(named)}{more}"


def restore(stage: str) -> bool:
    """Bring back the outputs of an earlier run of a stage with the same parameters and inputs, if DVC has them."""
    with repository() as repo:
        try:
            try:
                repo.stage_cache.restore(repo.stage.load_one(name=stage))
            except ConfirmRemoveError:
                # What lies there is this stage's, but not recorded: its run was killed, and gives way.
                repo.stage.load_one(name=stage).remove_outs(force=True)
                repo.stage_cache.restore(repo.stage.load_one(name=stage))
        except RunCacheNotFoundError:
            return False
    commit(stage)
    return True


def inputs_of(stage: str) -> Inputs:
    """Read what a stage depends on, as it is now: digests of files, values of parameters, by path."""
    with repository() as repo:
        found = repo.stage.load_one(name=stage)
        found.save_deps()
        return {dep.def_path: dep.hash_info for dep in found.deps}


def commit(stage: str, ran_with: Inputs | None = None) -> list[str]:
    """Record a stage's parameters, inputs and outputs in dvc.lock, and its outputs in the cache.

    Args:
        stage: of dvc.yaml.
        ran_with: what it depended on when it began; None: what it depends on now.

    Returns:
        What has changed since it began, in words: recorded is what it ran with, so it is not up to date.
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
    """Say how an input differs: which values of parameters, old and new, or which path."""
    old: Any = then.value
    new: Any = now.value
    if isinstance(old, dict):
        return _differing("", old, new)
    return [] if then == now else [f"{path} was changed"]


def _differing(key: str, old: Any, new: Any) -> list[str]:  # noqa: ANN401
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        inner = (_differing(f"{key}.{name}" if key else name, old.get(name), new.get(name)) for name in keys)
        return [change for changes in inner for change in changes]
    return [] if old == new else [f"{key} was {old}, is {new}"]


@contextmanager
def changing(*paths: Path, alike: bool) -> Iterator[None]:
    """Have dvc.lock say what outputs are after the block, where it said what they were before.

    What was not as recorded stays so, since a stage has to run in any case; so does all of it where the block fails.

    Args:
        paths: outputs, changed in the block after their stages.
        alike: the stages that read them would make the same of what they are now: these stay up to date.
    """
    with repository() as repo:
        recorded = {
            stage.addressing: [entry.def_path for entry in [*stage.outs, *(stage.deps if alike else ())]
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


def bring_back_as_recorded(*paths: Path) -> list[str]:
    """Bring back outputs that are not what dvc.lock records: damaged, another's, or of a run that was killed.

    Returns:
        Which, in words.

    Raises:
        RootstockError: the cache does not have them.
    """
    said = []
    with repository() as repo:
        for out in (out for stage in repo.index.stages for out in stage.outs if Path(out.def_path) in paths):
            if not (out.hash_info and out.workspace_status()):
                continue
            if out.changed_cache():  # else DVC would remove the output before it finds that out
                raise RootstockError(
                    f"{out.def_path} is not what {LOCK} records, and DVC's cache does not have that, or not whole. "
                    "Fetch it (`dvc fetch`), or run the pipeline."
                )
            out.checkout(force=True)
            said.append(f"{out.def_path} was not what {LOCK} records; it was brought back from DVC's cache.")
    return said


def add(path: Path) -> None:
    """Record files that no stage makes, in `<path>.dvc` and in the cache."""
    with repository() as repo:
        repo.add(str(path))


def bring_back(lock: str) -> None:
    """Make the data of the workspace those that a dvc.lock names.

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
            if before is not None:  # another one: it has read this lock
                write(LOCK, before)
                with suppress(DvcException):
                    Repo().checkout(force=True, allow_missing=True)
            raise RootstockError(f"The data of this version cannot be brought back: {error}") from error
        repair.note_lock()


def _check_out(repo: Repo) -> None:
    try:
        repo.checkout(force=True)
    except DvcException:  # the cache was emptied, perhaps
        repo.fetch()
        repo.checkout(force=True)


@dataclass(frozen=True)
class Kept:
    """Whether a run was kept as an experiment: its name and git revision, or why not."""

    name: str | None
    note: str
    revision: str | None = None


def save_experiment(run: str) -> Kept:
    """Keep the workspace as an experiment, named after a run as far as git allows.

    As `dvc exp save` does, but for the working tree, which that empties and fills again for a moment: what a person
    has edited there stays where it is. What DVC has recorded is kept, and nothing recorded for it.
    """
    name = escape.file_name(run)
    with repository() as repo:
        if not has_commits(Path(repo.root_dir)):
            return Kept(None, "Not kept as an experiment: the workspace is not a git repository with a commit.")
        try:
            message = f"dvc: commit experiment {BaseExecutor.hash_exp(repo.index.stages)}"
            head = git.head()
            revision = git.commit_of_working_tree(head, message, _beside_tracked(repo))
            git.set_ref(str(ExpRefInfo(head, name)), revision)
        except (DvcException, RootstockError, OSError) as error:  # no name and address to commit with, say
            return Kept(None, f"Not kept as an experiment: {error}")
    note = f"Kept as experiment {name}: `dvc exp show` compares, `dvc exp apply {name}` brings it back."
    return Kept(name, note, revision)


def _beside_tracked(repo: Repo) -> list[Path]:
    """List what belongs to an experiment though git may not track it: dvc.lock, and what dvc.yaml names to be shown."""
    shown = (Path(path) for path in BaseExecutor._get_top_level_paths(repo))
    outputs = [Path(out.def_path) for out in repo.index.outs if out.is_in_repo]
    return [LOCK, *(path for path in shown if not any(path.is_relative_to(out) for out in outputs))]


def save_what_repro_left() -> Kept | None:
    """Keep the results of a `dvc repro` that no experiment has, before a flow's take their place."""
    if not LOCK.exists() or is_kept(LOCK):
        return None
    with repository() as repo:
        finished = all(entries == [ALWAYS] for entries in repo.status().values())
    return save_experiment(f"repro-{sha256(LOCK)[:7]}") if finished else None


def is_kept(path: Path) -> bool:
    """Whether git has a file just as it is: in the last commit, or in an experiment that hangs on it."""
    return revision_with(path) is not None


def revision_with(path: Path) -> str | None:
    """Find a revision that has a file just as it is: the last commit, or an experiment that hangs on it."""
    with repository() as repo:
        if not has_commits(Path(repo.root_dir)):
            return None
        experiments = [revision for found in repo.experiments.ls().values() for _, revision in found]
        having = (rev for rev in ["HEAD", *experiments] if _in_git(repo, rev, path) == path.read_bytes())
        return next(having, None)


def committed(path: Path) -> bytes | None:
    """Give a file as the last commit has it, if it has it."""
    with repository() as repo:
        return _in_git(repo, "HEAD", path) if has_commits(Path(repo.root_dir)) else None


def _in_git(repo: Repo, revision: str, path: Path) -> bytes | None:
    try:
        content: bytes = repo.scm.get_fs(revision).cat_file(str(path))
    except FileNotFoundError:
        return None
    return content


def tag(name: str, revision: str | None, message: str) -> str | None:
    """Tag a revision, by default the last commit; returns the tag, or nothing where there is no git to hold it."""
    with repository() as repo:
        if not has_commits(Path(repo.root_dir)):
            return None
        try:
            if not git.has_tag(name):
                git.tag(name, revision or git.head(), message)
        except RootstockError as error:  # no name and address to tag with, say
            log.warning("%s is not tagged: %s", name, error)
            return None
    return name


def push() -> None:
    """Send all data of the workspace to the default remote.

    Raises:
        RootstockError: there is none, or it does not take them.
    """
    with repository() as repo:
        try:
            with causes.described():
                repo.push()
        except (DvcException, RootstockError) as error:
            raise RootstockError(f"The data cannot be pushed: {error}") from error


def has_commits(root: Path) -> bool:
    """Whether a folder is the top of a git repository that has a commit to hang experiments on."""
    try:
        git = SCM(str(root), search_parent_directories=False)
        return bool(git.get_rev())
    except SCMError:
        return False
    except Exception as error:  # a repository without any commit: each git backend has its own word for it
        log.debug("no commit in %s: %s", root, error)
        return False


def prepare(root: Path = Path()) -> None:
    """Make DVC work in a folder that is no git repository (an unpacked archive), and notice when it becomes one."""
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
