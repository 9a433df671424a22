"""Flows and DVC commands track their results where `track` of params.yaml says."""

import sys

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.retraining import deliver, retrain
from tests.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_server")


def turn_on(workspace: Workspace, track: str) -> None:
    path = workspace.root / "params.yaml"
    path.write_text(path.read_text().replace("track: none", f"track: {track}"))


def tracked(url: str, experiment: str) -> list[Run]:
    client = MlflowClient(url)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def test_the_command_that_tracks_says_if_nothing_is_to_be_tracked(after_flow):
    done = after_flow.run(sys.executable, "-m", "flows.track", check=False)
    assert done.returncode == 1
    assert done.stderr == "track: params.yaml: track is none; expected mlflow or wandb (docs/tracking.md).\n"


@pytest.mark.slow
def test_a_flow_tracks_its_run_under_the_name_of_its_experiment_and_a_cached_run_adds_none(after_flow, mlflow_url):
    turn_on(after_flow, "mlflow")
    env = {"MLFLOW_TRACKING_URI": mlflow_url, "MLFLOW_EXPERIMENT_NAME": "flow"}
    for notes in ("Tracked in MLflow: ", "MLflow has this run already: "):
        done = after_flow.run(sys.executable, "-m", "flows.pipeline", **env)
        kept, note = done.stderr.splitlines()
        assert note.startswith(f"{notes}{mlflow_url}/#/experiments/")
        [run] = tracked(mlflow_url, "flow")
        assert kept == f"Nothing new to keep: all results are those of experiment {run.info.run_name}."


@pytest.mark.slow
def test_dvc_repro_and_dvc_exp_run_track_their_results_a_part_of_them_does_not(after_flow, mlflow_url):
    turn_on(after_flow, "mlflow")
    env = {"MLFLOW_TRACKING_URI": mlflow_url, "MLFLOW_EXPERIMENT_NAME": "dvc"}
    after_flow.set(head={"l2": [3.0]})
    part = after_flow.run("dvc", "repro", "train_head", **env)
    assert "dvc: not tracked: Not every stage is up to date" in part.stderr
    whole = after_flow.run("dvc", "repro", **env)
    assert "dvc: Tracked in MLflow: " in whole.stderr
    after_flow.run("dvc", "exp", "run", "--name", "softer", "--set-param", "head.l2=[1.0]", **env)
    names = [run.info.run_name for run in tracked(mlflow_url, "dvc")]
    assert names[0] == "softer" and names[1].startswith("repro-") and len(names) == 2
    [first, second] = (run.data.params["head.l2"] for run in tracked(mlflow_url, "dvc"))
    assert (first, second) == ("[1.0]", "[3.0]")


@pytest.mark.slow
def test_a_server_that_is_gone_ends_no_run_and_the_results_are_tracked_later(after_flow, mlflow_url):
    turn_on(after_flow, "mlflow")
    gone = after_flow.run(sys.executable, "-m", "flows.pipeline", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert "warning: Not tracked in MLflow: the server at http://127.0.0.1:9 " in gone.stderr
    assert "Traceback" not in gone.stderr
    env = {"MLFLOW_TRACKING_URI": mlflow_url, "MLFLOW_EXPERIMENT_NAME": "later"}
    assert after_flow.run(sys.executable, "-m", "flows.track", **env).stdout.startswith("Tracked in MLflow: ")
    assert len(tracked(mlflow_url, "later")) == 1


@pytest.mark.slow
def test_a_retraining_tracks_the_challenger_with_the_decision(waiting, mlflow_url, tmp_path):
    workspace = waiting.copy(tmp_path / "workspace")
    turn_on(workspace, "mlflow")
    env = {"MLFLOW_TRACKING_URI": mlflow_url, "MLFLOW_EXPERIMENT_NAME": "retrain"}
    deliver(workspace, "shed", 18, first=600)
    assert retrain(workspace, **env).startswith("Promoted: ")
    deliver(workspace, "shed", 18, first=700, bad=True)
    assert retrain(workspace, **env).startswith("Rejected: ")
    rejected, promoted = (run.data.tags for run in tracked(mlflow_url, "retrain"))
    assert (promoted["decision"], promoted["champion"]) == ("promoted", "v2")
    assert rejected["decision"] == "rejected" and "champion" not in rejected
    assert promoted["data_version"] != rejected["data_version"]
    assert "shed" in promoted["reason"]
