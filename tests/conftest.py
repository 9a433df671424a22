"""Workspaces that have been run once, to copy from: a run takes a while, a copy does not."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.workspace import Workspace, make_workspace

# CI tries the same examples each time: what it finds is the change's fault. Elsewhere every run looks further.
settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("default")


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory) -> Path:
    """Prefect's folder for the whole session: setting up its database takes 20 s."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture
def workspace(tmp_path, prefect_home) -> Workspace:
    """A workspace in which nothing has run."""
    return make_workspace(tmp_path / "workspace", prefect_home)


@pytest.fixture(scope="session")
def flow_ran_in(tmp_path_factory, prefect_home) -> Workspace:
    """A workspace in which the flow has run; do not change it, copy it."""
    workspace = make_workspace(tmp_path_factory.mktemp("flow") / "workspace", prefect_home)
    workspace.flow()
    return workspace


@pytest.fixture(scope="session")
def repro_ran_in(tmp_path_factory, prefect_home) -> Workspace:
    """A workspace in which `dvc repro` has run; do not change it, copy it."""
    workspace = make_workspace(tmp_path_factory.mktemp("repro") / "workspace", prefect_home)
    workspace.repro()
    return workspace


@pytest.fixture
def after_flow(flow_ran_in, tmp_path) -> Workspace:
    """A copy of a workspace in which the flow has run."""
    return flow_ran_in.copy(tmp_path / "after-flow")


@pytest.fixture
def after_repro(repro_ran_in, tmp_path) -> Workspace:
    """A copy of a workspace in which `dvc repro` has run."""
    return repro_ran_in.copy(tmp_path / "after-repro")
