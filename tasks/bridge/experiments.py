"""Keep runs as DVC experiments, and find and tag what git or an experiment has of a file."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.experiments.executor.base import BaseExecutor
from dvc.repo.experiments.refs import ExpRefInfo
from dvc.scm import SCM, SCMError
from dvc_data.hashfile.db import HashFileDB

from rootstock.system import escape
from rootstock.system.errors import RootstockError
from rootstock.system.files import sha256
from tasks.bridge import git
from tasks.bridge.dvc_repository import repository
from tasks.bridge.lock_file import LOCK
from tasks.bridge.versions import ALWAYS

log = logging.getLogger(__name__)
REF_PARTS = 5  # refs/exps/<first two digits of the baseline's id>/<the others>/<name>


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


def keep(run: str) -> SavedExperiment:
    """Save the workspace as an experiment, unless git has exactly these results."""
    if (kept := find(LOCK)) is None:
        return save_experiment(run)
    where = f"experiment {kept.name}" if kept.name else "the last commit"
    return SavedExperiment(kept.name, f"Nothing new to keep: all results are those of {where}.", kept.revision)


def save_what_repro_left() -> SavedExperiment | None:
    """Save the results of a `dvc repro` as an experiment, unless git has them, before a flow replaces them."""
    if not LOCK.exists() or find(LOCK):
        return None
    return save_experiment(name_after_repro()) if is_up_to_date() else None


def is_up_to_date() -> bool:
    """Whether every stage is up to date, so that the outputs are those of one run."""
    with repository() as repo:
        return all(entries == [ALWAYS] for entries in repo.status().values())


def name_after_repro() -> str:
    """Name the run of a `dvc repro`, which has no name of its own."""
    return f"repro-{sha256(LOCK)[:7]}"


@dataclass(frozen=True)
class KeptRun:
    """A run that git keeps: its experiment's name and when that was saved; of the last commit "" and datetime.min."""

    name: str
    revision: str
    at: datetime


def find(path: Path) -> KeptRun | None:
    """Find where git has a file exactly as it is: in the last commit, or an experiment."""
    if not has_commits(Path()) or not path.exists():
        return None
    wanted = git.run("hash-object", "--no-filters", "--", str(path))
    kept = [KeptRun("", git.head(), datetime.min.replace(tzinfo=UTC)), *list_kept()]
    blobs = git.blobs([run.revision for run in kept], path)
    return next((run for run, blob in zip(kept, blobs, strict=True) if blob == wanted), None)


def list_kept() -> list[KeptRun]:
    """List the experiments of every commit, in the order in which they were saved; needs no lock."""
    if not has_commits(Path()):
        return []
    shown = "%(refname)%09%(objectname)%09%(committerdate:iso-strict)"
    refs = [line.split("\t") for line in git.run("for-each-ref", f"--format={shown}", "refs/exps").splitlines()]
    named = [(ref.split("/"), revision, at) for ref, revision, at in refs]
    kept = [
        KeptRun(parts[-1], revision, datetime.fromisoformat(at))
        for parts, revision, at in named
        if len(parts) == REF_PARTS and len(parts[2]) == len("ab")  # else DVC's own: refs/exps/exec, stash, celery
    ]
    return sorted(kept, key=lambda run: run.at)


def cached(digest: str) -> Path:
    """Return where DVC's cache has a file, if it has it, given its digest (of a directory: with .dir)."""
    return Path(_cache().oid_to_path(digest or "missing"))


@cache
def _cache() -> HashFileDB:
    found: HashFileDB = Repo().cache.local
    return found


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
