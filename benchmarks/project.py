"""A separate workspace for benchmarks, so that they do not touch the user's."""

import shutil
import subprocess
from pathlib import Path

from rootstock.config import params_file
from rootstock.config.section import Section
from tasks.bridge import versions
from tasks.bridge.workspace import PARAMS

FILES = ("flows", "tasks", "rootstock", ".dvc/config", ".dvc/.gitignore", ".dvc/plots", ".dvcignore", ".gitignore",
         "data/.gitignore", "data/report/.gitignore", "dvc.yaml", "params.yaml", "pyproject.toml")  # fmt: skip


def copy_project(root: Path, **sections: Section) -> None:
    """Copy the project without data into a new git repository (if git is installed), with other sections of params."""
    params = params_file.load(PARAMS)  # before an earlier copy is removed: it may be invalid
    shutil.rmtree(root, ignore_errors=True)
    for name in FILES:
        source, target = Path(name), root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    if shutil.which("git"):
        who = (("user.name", "Rootstock"), ("user.email", "benchmark@example.invalid"))
        settings = [["config", key, value] for key, value in who]
        for command in (["init", "-q"], *settings, ["add", "."], ["commit", "-qm", "Start"]):
            subprocess.run(["git", *command], cwd=root, check=True)
    versions.prepare(root)
    if sections:
        params_file.save(root / PARAMS, params.model_copy(update=sections))


def size_of(*paths: Path) -> int:
    """Return the bytes of files and folders."""
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]))
    return sum(file.stat().st_size for file in files if file.is_file())
