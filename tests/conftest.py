"""Workspaces in which a run has happened, for tests to copy: a run takes a while, a copy does not."""

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.mlflow_serving import mlflow_server
from tests.serving import Api, Bucket, bucket, server as booted
from tests.workspace import Workspace, environment, make_workspace, on_one_server

# CI tries the same examples each time: what it finds is the change's fault. Elsewhere each run tries other ones.
settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("default")


# Begins beside the first file, whose process sets up what all flows need, so that the other one finds it there.
BESIDE = Path(__file__).parent / "rootstock" / "evaluation" / "test_error_rates.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files = list(dict.fromkeys(item.path for item in items))
    if BESIDE in files:
        files.remove(BESIDE)
        files.insert(1, BESIDE)
    items.sort(key=lambda item: files.index(item.path))


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported stays: to visit its millions of objects again and again takes a tenth of the time


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Return a function that makes a folder once for all processes of a session; the others wait for it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not (made := shared / f"{name}.made").exists():
                make(folder)
                made.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory, once) -> Path:
    """Prefect's folder for the whole session: setting up its database takes 20 s, copying it none."""

    def make(folder: Path) -> None:
        folder.mkdir()
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        Workspace(folder, environment(folder)).run(*command)

    return Path(shutil.copytree(once("prefect-database", make), tmp_path_factory.mktemp("prefect"), dirs_exist_ok=True))


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


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory) -> Iterator[str]:
    """The address of an MLflow server on loopback."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def workspace(tmp_path, prefect_home) -> Workspace:
    """A workspace in which nothing has run."""
    return make_workspace(tmp_path / "workspace", prefect_home)


@pytest.fixture(scope="session")
def flow_ran_in(once, prefect_home) -> Workspace:
    """A workspace in which the flow has run; do not change it, copy it."""
    folder = once("flow", lambda folder: make_workspace(folder, prefect_home).flow())
    return Workspace(folder, environment(prefect_home))


@pytest.fixture(scope="session")
def repro_ran_in(once, prefect_home) -> Workspace:
    """A workspace in which `dvc repro` has run; do not change it, copy it."""
    folder = once("repro", lambda folder: make_workspace(folder, prefect_home).repro())
    return Workspace(folder, environment(prefect_home))


@pytest.fixture
def after_flow(flow_ran_in, tmp_path) -> Workspace:
    """A copy of a workspace in which the flow has run."""
    return flow_ran_in.copy(tmp_path / "after-flow")


@pytest.fixture
def after_repro(repro_ran_in, tmp_path) -> Workspace:
    """A copy of a workspace in which `dvc repro` has run."""
    return repro_ran_in.copy(tmp_path / "after-repro")
