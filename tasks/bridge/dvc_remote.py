"""Transfer the inputs, outputs and checkpoint of a stage between machines through the DVC remote.

This module imports DVC, whose versions pyproject.toml pins (dvc_repository.py says which others do).
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.config import Config, NoRemoteError
from dvc.data_cloud import Remote
from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.serialize import dump_yaml, load_yaml

from rootstock.config import params_file
from rootstock.config.params import Params
from rootstock.system import files
from rootstock.system.errors import ParamsError, RootstockError
from tasks.bridge.dvc_repository import repository
from tasks.bridge.lock_file import LOCK
from tasks.bridge.versions import commit
from tasks.bridge.workspace import DATA, PARAMS

PIPELINE, IGNORED = Path("dvc.yaml"), Path(".dvcignore")
CODE = {".py", ".j2"}  # suffixes of code in the folders that a stage depends on
LOOSE = "rootstock"  # folder on the remote for unversioned files, next to those of DVC


def check(reason: str) -> None:
    """Check that a default remote is configured.

    Raises:
        ParamsError: none is.
    """
    with repository() as repo:
        try:
            repo.cloud.get_remote()
        except NoRemoteError:
            raise ParamsError(
                f"{reason}, which transfers data through the default DVC remote, and none is set: "
                "dvc remote add --default shelf s3://bucket/folder"
            ) from None


def code_of(stage: str) -> dict[str, str]:
    """Return the digest of each code file that a stage depends on."""
    with repository() as repo:
        paths = _code(repo.stage.load_one(name=stage).deps)
    named = {file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.suffix in CODE}
    return {str(file): files.sha256(file) for file in sorted(named)}


def _code(deps: Iterable[Any]) -> set[Path]:
    """Return the code files and packages among dependencies."""
    paths = {Path(dep.def_path) for dep in deps} - {PARAMS}
    return {path for path in paths if not path.is_relative_to(DATA)}


def sections_of(stage: str) -> set[str]:
    """Return the sections of params.yaml that a stage depends on; only these go to another machine."""
    with repository() as repo:
        deps = repo.stage.load_one(name=stage).deps
    names = (name for dep in deps if isinstance(dep, ParamsDependency) for name in dep.params)
    return {name.partition(".")[0] for name in names}


def key_of(stage: str) -> str:
    """Return a digest of all dependencies of a stage: data, parameters and code."""
    with repository() as repo:
        deps = repo.stage.load_one(name=stage).deps
        found = {str(dep): dep.get_hash().value if hasattr(dep, "get_hash") else None for dep in deps}
    return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()


def push_inputs(stage: str) -> None:
    """Push the inputs of a stage, unless the remote has them."""
    with _transfers() as repo:
        repo.push(targets=_inputs(repo, stage))


def pull_inputs(stage: str) -> None:
    """Pull the inputs of a stage that dvc.lock records."""
    with _transfers() as repo:
        repo.pull(targets=_inputs(repo, stage))


def push_outputs(stage: str) -> None:
    """Push the outputs of a stage."""
    with _transfers() as repo:
        repo.push(targets=[stage])


def outputs_of(stage: str) -> list[dict[str, Any]]:
    """Return the outputs of a stage in dvc.lock: path, hash, md5, size, nfiles."""
    outs: list[dict[str, Any]] = load_yaml(str(LOCK))["stages"][stage]["outs"]
    return [dict(out) for out in outs]


def take_over(stage: str, outputs: list[dict[str, Any]]) -> None:
    """Pull the outputs of a stage that ran on another machine, and record them here."""
    lock = load_yaml(str(LOCK))
    with _transfers() as repo:
        lock["stages"][stage] = {"cmd": repo.stage.load_one(name=stage).cmd, "outs": outputs}
        with files.replacing(LOCK) as temporary:
            dump_yaml(str(temporary), lock)
    with _transfers() as repo:  # a new Repo reads the new lock
        repo.pull(targets=[stage], force=True)
    commit(stage)


def create_workspace(root: Path, params: Params, lock: str, cache: Path) -> None:
    """Create a workspace with the code, remote and cache of this one, and other parameters and lock.

    Stages do not write to their inputs, so these are links into the cache where the file system supports it.
    """
    with repository() as repo:
        code = _code(dep for stage in repo.index.stages for dep in stage.deps)
        remotes, default = repo.config["remote"], repo.config["core"]["remote"]
    for path in [PIPELINE, IGNORED, *code]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, root / path, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, root / path)
    params_file.save(root / PARAMS, params)
    files.write(root / LOCK, lock)
    (root / ".dvc").mkdir()
    config = Config.init(str(root / ".dvc"))
    with config.edit("repo") as settings:
        settings["core"] = {"remote": default, "no_scm": True, "analytics": False}
        settings["remote"] = remotes
        settings["cache"] = {"dir": str(cache), "type": ["reflink", "hardlink", "symlink", "copy"]}


def put_file(path: Path, key: str) -> None:
    """Upload a file to the remote under a key, replacing an earlier one."""
    with _loose(key) as (remote, place):
        remote.fs.makedirs(remote.fs.parent(place), exist_ok=True)
        remote.fs.put_file(str(path), place)


def get_file(key: str, path: Path) -> bool:
    """Download a file from the remote, if it is there."""
    with _loose(key) as (remote, place):
        if not remote.fs.exists(place):
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary:
            remote.fs.get_file(place, str(temporary))
    return True


def drop_file(key: str) -> None:
    """Remove a file from the remote, if it is there."""
    with _loose(key) as (remote, place):
        if remote.fs.exists(place):
            remote.fs.remove(place)


@contextmanager
def _loose(key: str) -> Iterator[tuple[Remote, str]]:
    with repository() as repo:
        remote = repo.cloud.get_remote()
    yield remote, remote.fs.join(remote.path, LOOSE, key)


@contextmanager
def _transfers() -> Iterator[Repo]:
    """Turn DVC's errors into a RootstockError."""
    with repository() as repo:
        try:
            yield repo
        except DvcException as error:
            raise RootstockError(f"The DVC remote: {error}") from error


def _inputs(repo: Repo, stage: str) -> list[str]:
    deps = repo.stage.load_one(name=stage).deps
    return [dep.def_path for dep in deps if Path(dep.def_path).is_relative_to(DATA)]
