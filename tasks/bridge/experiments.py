"""Keep runs as DVC experiments, and find and tag what git or an experiment has of a file."""

import logging
from dataclasses import dataclass
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.experiments.executor.base import BaseExecutor
from dvc.repo.experiments.refs import ExpRefInfo
from dvc.scm import SCM, SCMError

from rootstock.system import escape
from rootstock.system.errors import RootstockError
from rootstock.system.files import sha256
from tasks.bridge import git
from tasks.bridge.dvc_repository import repository
from tasks.bridge.repair import LOCK
from tasks.bridge.versions import ALWAYS

log = logging.getLogger(__name__)


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
