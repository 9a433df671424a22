"""A workspace in which a challenger competes with the champion."""

from pathlib import Path

import pytest

from tests.workspace import Workspace


@pytest.fixture(scope="session")
def contested(once, flow_ran_in) -> Workspace:
    """A workspace with a champion aside, a challenger in its place, and a remote to push to; do not change it."""

    def make(folder: Path) -> None:
        workspace = flow_ran_in.copy(folder / "workspace")
        workspace.run("git", "init", "-q", "--bare", "-b", "main", str(folder / "origin"))
        workspace.run("git", "remote", "add", "origin", str(folder / "origin"))
        workspace.run("dvc", "remote", "add", "--default", "shelf", str(folder / "shelf"))
        workspace.run("git", "add", ".dvc/config", "dvc.lock", "params.yaml")
        workspace.run("git", "commit", "-qm", "in use")
        workspace.run("git", "push", "-q", "origin", "main")
        workspace.run("python", "-c", "from tasks.bridge import champion; champion.set_aside()")
        workspace.set(evaluate={"mistakes": 12})  # makes another model's card and another dvc.lock
        workspace.set(head={"l2": [5.0]})
        workspace.run("dvc", "repro")
        (workspace.root / "staged.md").write_text("mine\n")
        workspace.run("git", "add", "staged.md")

    return Workspace(once("contested", make) / "workspace", flow_ran_in.env)
