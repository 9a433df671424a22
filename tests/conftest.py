"""Workspaces that have been run once, to copy from: a run takes a while, a copy does not."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.serving import Api, Bucket, bucket, server as booted
from tests.workspace import Workspace, environment, make_workspace, on_one_server

# CI tries the same examples each time: what it finds is the change's fault. Elsewhere every run looks further.
settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("default")


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory) -> Path:
    """Prefect's folder for the whole session: setting up its database takes 20 s."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def server(prefect_home) -> Iterator[Api]:
    """A Prefect server of its own on a free port of loopback, for the whole session; nothing is deployed."""
    with booted(environment(prefect_home)) as api:
        yield api


@pytest.fixture(scope="module")
def one_server(server) -> Iterator[None]:
    """All flows of a module run on one server; each would take seconds to start its own."""
    on_one_server["PREFECT_API_URL"] = server.url
    yield
    on_one_server.clear()


@pytest.fixture(scope="session")
def deployed(server, flow_ran_in) -> Api:
    """The server with everything that prefect.yaml and automations.yaml name."""
    flow_ran_in.run(sys.executable, "-m", "flows.ui.deploy", PREFECT_API_URL=server.url)
    return server


@pytest.fixture(scope="session")
def s3() -> Iterator[Bucket]:
    """A bucket on an S3 server on loopback."""
    with bucket() as found:
        yield found


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
