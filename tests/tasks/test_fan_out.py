"""Shards on real Dask and Ray clusters of two workers, from a stage and a flow; one worker is killed in each."""

import json
import subprocess
import sys

import pytest

from rootstock.system.errors import RootstockError
from tests import fanning
from tests.workspace import ROOT, environment


@pytest.fixture
def fan_out(prefect_home, tmp_path):
    """Run tests/fanning.py as a process of its own; returns it, and the folder that its work wrote to."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        runner, start, *shards = arguments
        command = [sys.executable, "-m", "tests.fanning", runner, start, str(tmp_path), *shards]
        home = {"HOME": str(prefect_home)}  # Ray keeps a token there
        return subprocess.run(
            command, cwd=ROOT, env=environment(prefect_home) | home | env, capture_output=True, text=True, timeout=180
        )

    return run


def tries_of(folder) -> dict[str, list[str]]:
    return {path.stem: path.read_text().split() for path in folder.glob("*.tries")}


@pytest.mark.cluster
@pytest.mark.parametrize("runner", ["dask", "ray"])
@pytest.mark.parametrize("start", ["stage", "flow"])
def test_a_killed_worker_loses_only_its_shard_which_is_tried_again(runner, start, fan_out, tmp_path):
    done = fan_out(runner, start)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == len(fanning.SHARDS) * fanning.IMAGES
    assert sorted(path.stem for path in tmp_path.glob("*.parquet")) == fanning.SHARDS
    tries = tries_of(tmp_path)
    died, *again = tries[fanning.KILLS]
    assert again and died not in again
    # What the worker had ended before, a Dask that has not yet given the result away does again.
    assert {shard for shard, pids in tries.items() if len(pids) > 1 and died not in pids} == set()


@pytest.mark.cluster
def test_shards_are_task_runs_of_a_subflow(server, fan_out):
    before = {run.id for run in server.runs()}
    done = fan_out("dask", "flow", PREFECT_API_URL=server.url)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = {run.page()["name"]: run for run in server.runs() if run.id not in before}
    pages = [run.page() for run in runs.values()]
    [parent] = [page for page in pages if not page["parent_task_run_id"]]
    [below] = server.runs(parent_flow_run_id={"any_": [parent["id"]]})
    assert below.ended()["message"] == "8 shards"
    assert {state for name, state in below.stages().items()} == {"Completed"}


@pytest.mark.cluster
@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_an_error_in_a_worker_ends_the_call_with_its_message(runner, fan_out, tmp_path):
    done = fan_out(runner, "stage", "a", fanning.FAILS, "b")
    assert done.returncode == 1
    assert f"SourceError: {tmp_path}/fails: holds 3 of the 5 images wanted" in done.stderr.splitlines()
    assert len(tries_of(tmp_path)[fanning.FAILS]) == 1


@pytest.mark.parametrize(("runner", "package"), [("dask", "prefect_dask"), ("ray", "ray")])
def test_a_runner_that_is_not_installed_is_an_error_that_says_how_to_install_it(runner, package, monkeypatch):
    from tasks.bridge.fan_out import fan_out

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RootstockError, match=rf"{package} is not installed: pip install .* '\.\[{runner}\]'"):
        fan_out(fanning.work, None, ["a"], runner, None, 2, print)
