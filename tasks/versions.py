"""Every call into DVC: is a stage up to date, can it be restored, record what it did, keep the run as an experiment.

    python -m tasks.versions    # make the workspace ready for DVC

DVC's Python API beyond `dvc.api` is not promised to be stable: pyproject.toml pins the range, and nothing outside
this module imports it.
"""

import logging
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError

log = logging.getLogger(__name__)
ALWAYS = "always changed"
NAMED = 4  # changed files that a reason names; a first run has all of them
# One at a time: DVC's lock is for processes, and stages of a flow are threads.
_one_at_a_time = threading.RLock()


@contextmanager
def _repo() -> Iterator[Repo]:
    with _one_at_a_time, _quiet(), Repo() as repo:
        yield repo


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
    with _repo() as repo:
        found = repo.status(targets=[stage]).get(stage, [])
    return [entry if isinstance(entry, str) else _say(*next(iter(entry.items()))) for entry in found]


def _say(kind: str, paths: Collection[str]) -> str:
    """Name what changed, and if that is much, how much."""
    named = list(paths)[:NAMED]
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"{kind}: {', '.join(named)}{more}"


def restore(stage: str) -> bool:
    """Bring back the outputs of an earlier run of a stage with the same parameters and inputs, if DVC has them."""
    with _repo() as repo, repo.lock:
        try:
            repo.stage_cache.restore(repo.stage.load_one(name=stage))
        except RunCacheNotFoundError:
            return False
    commit(stage)
    return True


def commit(stage: str) -> None:
    """Record a stage's parameters, inputs and outputs in dvc.lock, and its outputs in the cache."""
    with _repo() as repo:
        repo.commit(stage, force=True)


def save_experiment(name: str) -> str:
    """Keep the workspace as an experiment of this name; returns a sentence that says whether that worked."""
    with _repo() as repo:
        if not has_commits(Path(repo.root_dir)):
            return "Not kept as an experiment: the workspace is not a git repository with a commit."
        try:
            repo.experiments.save(name=name, force=True)
        except DvcException as error:
            return f"Not kept as an experiment: {error}"
    return f"Kept as experiment {name}: `dvc exp show` compares, `dvc exp apply {name}` brings it back."


def has_commits(root: Path) -> bool:
    """Whether a folder is the top of a git repository that has a commit to hang experiments on."""
    from dvc.scm import SCM, SCMError  # git is looked at only where it is asked for

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
    git = (root / ".git").exists()
    with config.edit("local") as local:
        core = local.setdefault("core", {})
        if git:
            core.pop("no_scm", None)
        else:
            core["no_scm"] = True


if __name__ == "__main__":
    prepare()
