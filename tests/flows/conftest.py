"""Workspaces whose model is in use, and in which a delivery waits or was promoted; tests of retraining share them."""

from pathlib import Path

import pytest

from tests.retraining import deliver, retrain
from tests.workspace import Workspace


@pytest.fixture(scope="session")
def in_use(once, flow_ran_in) -> Workspace:
    """A workspace whose model is in use; do not change it, copy it."""

    def make(folder: Path) -> None:
        workspace = flow_ran_in.copy(folder)
        workspace.set(retrain={"settle_seconds": 0.2, "min_new": 10})
        workspace.run("git", "add", "params.yaml", "dvc.lock")
        workspace.run("git", "commit", "-qm", "in use")

    return Workspace(once("in-use", make), flow_ran_in.env)


@pytest.fixture(scope="session")
def waiting(once, in_use, server) -> Workspace:
    """A workspace in which too few images of a new domain have arrived; do not change it, copy it."""

    def make(folder: Path) -> None:
        workspace = in_use.copy(folder)
        deliver(workspace, "shed", 2)
        said = retrain(workspace, **server.env)
        assert said.startswith("Waiting: 6 new images (6 of shed), fewer than retrain.min_new (10)"), said

    return Workspace(once("waiting", make), in_use.env)


@pytest.fixture(scope="session")
def promoted(once, waiting, server) -> Workspace:
    """A workspace in which enough of it has arrived, and the challenger was promoted; do not change it, copy it."""

    def make(folder: Path) -> None:
        workspace = waiting.copy(folder)
        deliver(workspace, "shed", 18, first=600)
        said = retrain(workspace, **server.env)
        assert said.startswith("Promoted: The challenger is better"), said
        assert "60 new images (60 of shed); 60 of 105 images extracted" in said
        assert said.endswith("To record it in git, commit dvc.lock, params.yaml, data/history.parquet.dvc."), said

    return Workspace(once("promoted", make), waiting.env)


@pytest.fixture
def before(in_use, tmp_path) -> Workspace:
    """A copy of the workspace whose model is in use."""
    return in_use.copy(tmp_path / "workspace")


@pytest.fixture
def after(promoted, tmp_path) -> Workspace:
    """A copy of the workspace after a promotion."""
    return promoted.copy(tmp_path / "workspace")
