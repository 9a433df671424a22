"""What is tracked of a run: read from what the stages wrote, whichever way they were run."""

import json
from hashlib import sha256

import pandas as pd
import pytest

from tasks.bridge.tracked_run import Point, TrackedRun, read_run
from tests.workspace import SMALL, Workspace


@pytest.fixture
def run(flow_ran_in, monkeypatch) -> TrackedRun:
    monkeypatch.chdir(flow_ran_in.root)
    return read_run("wise-goat", {"decision": "promoted"})


def figure(workspace: Workspace, *path: str) -> float:
    found = json.loads((workspace.root / "data" / "report" / path[0]).read_text())
    for key in path[1:]:
        found = found[key]
    return found


def test_parameters_are_those_that_the_stages_ran_with_by_dotted_key(flow_ran_in, run):
    assert run.params["seed"] == 0 and run.params["backbone.image_size"] == 32
    assert run.params["finetune.stages"] == SMALL["finetune"]["stages"]
    assert run.params["ingest.split.val"] == 0.2
    assert not [key for key, value in run.params.items() if isinstance(value, dict)]


def test_an_edit_of_params_yaml_after_the_run_is_not_taken_for_its_parameters(after_flow, monkeypatch):
    after_flow.set(head={"l2": [5.0]})
    monkeypatch.chdir(after_flow.root)
    assert read_run("later", {}).params["head.l2"] == [10.0, 0.1]


def test_final_figures_say_which_images_they_were_measured_on(flow_ran_in, run):
    winner = run.tags["winner"]
    accuracy = ("accuracy", "value")
    assert run.metrics["validation/accuracy"] == figure(flow_ran_in, "validation.json", winner, *accuracy)
    assert run.metrics["validation_finetuned/accuracy"] == figure(
        flow_ran_in, "validation.json", "finetuned", *accuracy
    )
    assert run.metrics["test/accuracy"] == figure(flow_ran_in, "test.json", *accuracy)
    assert run.metrics["test/accuracy_low"] == figure(flow_ran_in, "test.json", "accuracy", "low")
    assert run.metrics["test/images"] == 9
    prefixes = {"validation", "validation_head", "validation_finetuned", "test"}
    assert {name.partition("/")[0] for name in run.metrics} == prefixes


def test_curves_have_a_point_per_epoch_of_fine_tuning(flow_ran_in, run):
    history = pd.read_parquet(flow_ran_in.root / "data" / "finetuned" / "history.parquet")
    accuracies = [point for point in run.curves if point.name == "finetune/val_accuracy"]
    assert [point.epoch for point in accuracies] == [1, 2]
    assert [point.value for point in accuracies] == pytest.approx(history["val_accuracy"].to_list(), abs=1e-5)
    assert {point.name for point in run.curves} == {
        f"finetune/{name}" for name in ("train_loss", "val_loss", "val_accuracy")
    }
    assert isinstance(run.curves[0], Point)


def test_tags_name_the_data_the_commit_and_what_the_flow_adds(flow_ran_in, run):
    lock = (flow_ran_in.root / "dvc.lock").read_bytes()
    assert run.fingerprint == sha256(lock).hexdigest()
    assert run.tags["data_version"] and run.tags["data_version"] in lock.decode()
    assert run.tags["git_commit"] == flow_ran_in.run("git", "rev-parse", "HEAD").stdout.strip()
    assert run.tags["decision"] == "promoted"


def test_every_artifact_and_the_model_exist(flow_ran_in, run):
    names = {path.name for path in run.artifacts}
    assert {"report.html", "plots", "params.yaml", "dvc.lock", "metrics.json", "test.json"} <= names
    assert all((flow_ran_in.root / path).exists() for path in (*run.artifacts, run.model))
