"""Extraction on a real Dask and a real Ray of two workers: the same bytes as here, whoever is killed."""

import json
import os
import signal
import threading
import time

import psutil
import pytest

from tests.workspace import Workspace, make_workspace

MANY = 8  # shards
RAY = pytest.param("ray", marks=pytest.mark.cluster)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, prefect_home) -> Workspace:
    """A workspace of several shards whose features were computed here; do not change it, copy it."""
    root = tmp_path_factory.mktemp("alone") / "workspace"
    workspace = make_workspace(root, prefect_home)
    workspace.set(ingest={"shard_mb": 0.02}, extract={"engine": "openvino"})
    workspace.run("dvc", "repro", "extract")
    assert len(list((root / "data/images").glob("*.tar"))) >= MANY
    return workspace


def features_of(workspace: Workspace) -> dict[str, bytes]:
    folder = workspace.root / "data/features"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def without_features(alone: Workspace, root, **extract: object) -> Workspace:
    """Copy the workspace without its features, with other parameters of extract."""
    copy = alone.copy(root)
    for path in (copy.root / "data/features").rglob("*.parquet"):
        path.unlink()
    copy.set(extract=extract)
    return copy


@pytest.mark.parametrize("runner", ["dask", RAY])
def test_on_two_workers_the_bytes_are_those_of_one_process(alone, tmp_path, runner):
    copy = without_features(alone, tmp_path / runner, runner=runner)
    said = copy.run("python", "-m", "tasks.extract", HOME=str(tmp_path)).stderr
    assert "45 computed of 45 images, by openvino" in said
    assert features_of(copy) == features_of(alone)


@pytest.mark.parametrize("runner", ["dask", RAY])
def test_a_worker_that_is_killed_loses_nothing_but_time(alone, tmp_path, runner):
    copy = without_features(alone, tmp_path / runner, runner=runner)
    killed: list[int] = []

    def kill_one() -> None:
        """Wait for the first file, and kill a process that is at work on another."""
        while not features_of(copy):
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            command = " ".join(process.cmdline())
            worker = (
                command.startswith("ray::") and "Agent" not in command if runner == "ray" else "spawn_main" in command
            )
            if worker:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    said = copy.run("python", "-m", "tasks.extract", HOME=str(tmp_path)).stderr
    thread.join(5)
    assert killed, "no worker was found to kill"
    assert "computed of 45 images, by openvino" in said
    assert features_of(copy) == features_of(alone)


@pytest.mark.cluster
def test_through_a_store_the_bytes_are_the_same_and_the_next_workspace_finds_them(alone, tmp_path, s3):
    store = f"s3://{s3.bucket}/features"
    env = s3.credentials | {"AWS_ENDPOINT_URL": s3.url}
    copy = without_features(alone, tmp_path / "one", runner="dask", store=store)
    copy.run("python", "-m", "tasks.extract", **env)
    assert features_of(copy) == features_of(alone)
    again = without_features(alone, tmp_path / "two", runner="dask", store=store)
    again.run("python", "-m", "tasks.extract", **env)
    assert features_of(again) == features_of(alone)


@pytest.mark.cluster
def test_the_flow_fans_out_too_and_dvc_has_nothing_left_to_do(alone, tmp_path):
    copy = without_features(alone, tmp_path / "flow", runner="dask")
    copy.flow()
    assert features_of(copy) == features_of(alone)
    assert json.loads(copy.run("dvc", "status", "--json", "extract").stdout) == {}
