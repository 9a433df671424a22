"""Extraction on real Dask and Ray clusters of two workers: the same bytes as locally, even if workers are killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.serving import free_port, until
from tests.workspace import Workspace, make_workspace

MANY = 8  # shards
DASK = pytest.param("dask", marks=pytest.mark.slow)
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


@pytest.mark.parametrize("runner", [DASK, RAY])
def test_two_workers_write_the_same_bytes_as_one_process(alone, tmp_path, runner):
    copy = without_features(alone, tmp_path / runner, runner=runner)
    said = copy.run("python", "-m", "tasks.extract", HOME=str(tmp_path)).stderr
    assert "45 of 45 images extracted with openvino" in said
    assert features_of(copy) == features_of(alone)


@pytest.mark.cluster
@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_killed_worker_costs_nothing_but_time(alone, tmp_path, runner):
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
    assert "of 45 images extracted with openvino" in said
    assert features_of(copy) == features_of(alone)


@pytest.mark.cluster
def test_features_in_a_store_have_the_same_bytes_and_are_reused_by_the_next_workspace(alone, tmp_path, s3):
    store = f"s3://{s3.bucket}/features"
    env = s3.credentials | {"AWS_ENDPOINT_URL": s3.url}
    copy = without_features(alone, tmp_path / "one", runner="dask", store=store)
    copy.run("python", "-m", "tasks.extract", **env)
    assert features_of(copy) == features_of(alone)
    again = without_features(alone, tmp_path / "two", runner="dask", store=store)
    again.run("python", "-m", "tasks.extract", **env)
    assert features_of(again) == features_of(alone)


@pytest.mark.cluster
def test_a_flow_fans_out_too_and_dvc_has_nothing_left_to_do(alone, tmp_path):
    copy = without_features(alone, tmp_path / "flow", runner="dask")
    copy.flow()
    assert features_of(copy) == features_of(alone)
    assert json.loads(copy.run("dvc", "status", "--json", "extract").stdout) == {}


DASK_SCHEDULER = """
from distributed import LocalCluster
cluster = LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0")
print(cluster.scheduler_address, flush=True)
input()
"""


@contextmanager
def running_dask(env: dict[str, str]) -> Iterator[str]:
    """Start a Dask of two workers; gives its address."""
    command = [sys.executable, "-c", DASK_SCHEDULER]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()  # it ends as at the end of a file, and its workers with it


@contextmanager
def running_ray(env: dict[str, str]) -> Iterator[str]:
    """Start a Ray of two workers; gives its address."""
    port = next(port for port in iter(free_port, None) if port > 20_000)  # below are its workers' own
    head = f"--port={port} --ray-client-server-port={port + 1} --node-ip-address=127.0.0.1 --num-cpus=2"
    command = ["ray", "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=false", *head.split()]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

        def answers() -> bool:
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port + 1)) == 0

        try:
            until(answers, "Ray's head answers")
            yield f"ray://127.0.0.1:{port + 1}"
        finally:
            process.terminate()


@pytest.mark.cluster
@pytest.mark.parametrize(("runner", "running"), [("dask", running_dask), ("ray", running_ray)])
def test_a_running_cluster_gives_the_same_bytes_and_keeps_running(alone, tmp_path, server, runner, running):
    env = alone.env | {"PREFECT_API_URL": server.url, "HOME": str(tmp_path)}
    with running(env) as address:
        for turn in ("one", "two"):
            copy = without_features(alone, tmp_path / turn, runner=runner, cluster=address)
            said = copy.run("python", "-m", "tasks.extract", **env).stderr
            assert "45 of 45 images extracted with openvino" in said
            assert features_of(copy) == features_of(alone)
