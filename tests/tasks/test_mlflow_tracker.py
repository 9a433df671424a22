"""A run in MLflow on a real server: what was tracked is read back, and the model predicts as it does here."""

import json
import os
import subprocess
import sys
from base64 import b64encode
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import rootstock
from tasks.bridge import child_process, mlflow_tracker
from tasks.bridge.tracked_run import FINGERPRINT, TrackedRun, read_run
from tests.mlflow_serving import answers
from tests.serving import free_port, process, until
from tests.workspace import Workspace

pytestmark = pytest.mark.slow
LOAD_AND_PREDICT = """
import json, sys, mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
import rootstock
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
paths = sys.argv[2:]
tables = [model.predict(paths), model.predict([Path(path).read_bytes() for path in paths])]
print(json.dumps({"code": rootstock.__file__, "answers": [table.to_dict("records") for table in tables]}))
"""


@pytest.fixture(scope="module")
def here(mlflow_url, flow_ran_in):
    """A process in a workspace in which a flow has run, with a server to track in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(flow_ran_in.root)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
        yield flow_ran_in


@pytest.fixture(scope="module")
def asked(here) -> TrackedRun:
    run = read_run("wise-goat", {"decision": "promoted"})
    return replace(run, params={"long": "x" * 9000, **run.params})


@pytest.fixture(scope="module")
def tracked(asked) -> tuple[str, str]:
    """The sentences of a run that was tracked twice."""
    return mlflow_tracker.track(asked), mlflow_tracker.track(asked)


@pytest.fixture
def found(tracked, asked) -> Run:
    client = MlflowClient()
    experiment = client.get_experiment_by_name("rootstock")
    [run] = client.search_runs([experiment.experiment_id], f"tags.`{FINGERPRINT}` = '{asked.fingerprint}'")
    return run


def test_parameters_tags_and_final_figures_are_those_of_the_run(asked, found):
    assert (found.info.run_name, found.info.status) == ("wise-goat", "FINISHED")
    assert found.data.params["backbone.image_size"] == "32"
    assert json.loads(found.data.params["finetune.stages"]) == asked.params["finetune.stages"]
    assert len(found.data.params["long"]) == 6000 and found.data.params["long"].endswith("x...")
    assert found.data.params.keys() == asked.params.keys()
    assert dict(asked.tags).items() <= found.data.tags.items()
    for name, value in asked.metrics.items():
        assert found.data.metrics[name] == pytest.approx(value)


def test_the_step_of_a_metric_is_its_epoch(asked, found):
    for name in {point.name for point in asked.curves}:
        logged = [(one.step, one.value) for one in MlflowClient().get_metric_history(found.info.run_id, name)]
        assert logged == [(point.epoch, point.value) for point in asked.curves if point.name == name]


def test_report_plots_and_parameters_are_artifacts(here, found, tmp_path):
    client = MlflowClient()
    listed = {one.path for one in client.list_artifacts(found.info.run_id)}
    assert {"report.html", "plots", "params.yaml", "dvc.lock", "test.json"} <= listed
    copy = Path(client.download_artifacts(found.info.run_id, "report.html", str(tmp_path)))
    assert copy.read_bytes() == (here.root / "data" / "report" / "report.html").read_bytes()


def test_a_run_is_tracked_once(tracked, mlflow_url, found):
    address = f"{mlflow_url}/#/experiments/{found.info.experiment_id}/runs/{found.info.run_id}"
    assert tracked == (f"Tracked in MLflow: {address}.", f"MLflow has this run already: {address}.")


def test_a_run_whose_tracking_was_killed_is_tracked_again(here, asked):
    client, killed = MlflowClient(), replace(asked, tags={**asked.tags, FINGERPRINT: "0" * 64})
    experiment = client.get_experiment_by_name("rootstock").experiment_id
    left = client.create_run(experiment, tags={FINGERPRINT: killed.fingerprint})
    assert mlflow_tracker.track(killed).startswith("Tracked in MLflow: ")
    assert client.get_run(left.info.run_id).info.status == "KILLED"


def test_the_model_of_a_run_is_loaded_elsewhere_with_its_code_and_predicts_the_same(here, found, tmp_path):
    paths = [str(path) for path in sorted((here.root / "photos").rglob("*.png"))[::9]]
    (broken := tmp_path / "broken.png").write_bytes(b"no image")
    paths.append(str(broken))
    uri = f"runs:/{found.info.run_id}/model"
    command = [sys.executable, "-W", "ignore", "-c", LOAD_AND_PREDICT, uri, *paths]
    env = {key: value for key, value in here.env.items() if key != "PYTHONPATH"}
    env |= {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert Path(said["code"]).parents[1].name == "code"  # in the model that MLflow has downloaded
    own = rootstock.load_model(here.root / "data" / "model")
    given = paths, [Path(path).read_bytes() for path in paths]
    for answered, expected in zip(said["answers"], map(own.predict, given), strict=True):
        assert expected[-1].reason
        assert [one["label"] for one in answered] == [one.label for one in expected]
        assert [one["reason"] for one in answered] == [one.reason or "" for one in expected]
        assert [one["unknown"] for one in answered] == [one.unknown for one in expected]
        for answer, one in zip(answered, expected, strict=True):
            assert answer["probabilities"] == pytest.approx(one.probabilities, abs=1e-5)


def test_its_requirements_are_what_rootstock_needs_at_the_installed_versions(found):
    listed = Path(mlflow.pyfunc.get_model_dependencies(f"runs:/{found.info.run_id}/model")).read_text().split()
    assert f"safetensors=={metadata.version('safetensors')}" in listed
    assert any(line.startswith("torch==") for line in listed) and not any("+" in line for line in listed)
    assert not any(line.startswith(("prefect", "dvc")) for line in listed)


def test_a_served_model_takes_base64_and_reads_no_file_of_the_server(here: Workspace, found, tmp_path):
    photo = next((here.root / "photos" / "lemon").iterdir())
    port, log = free_port(), tmp_path / "log.txt"
    uri = f"runs:/{found.info.run_id}/model"
    serve = ("mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "--port", str(port))
    url = f"http://127.0.0.1:{port}"

    def answer(content_type: str, body: str) -> dict[str, Any]:
        request = Request(f"{url}/invocations", body.encode(), {"Content-Type": content_type})
        with urlopen(request, timeout=30) as answered:
            [prediction] = json.loads(answered.read())["predictions"]
        return prediction

    with process(child_process.command(*serve), dict(os.environ), log=log) as running:
        until(lambda: answers(running, f"{url}/ping", log), f"the model is served; see {log}", 120)
        content = b64encode(photo.read_bytes()).decode()
        seen = answer("application/json", json.dumps({"dataframe_split": {"data": [[content]]}}))
        for path in (answer("text/csv", f"image\n{photo}\n"), answer("application/json", f'{{"inputs": ["{photo}"]}}')):
            assert path["reason"] == "not_an_image"
    [expected] = rootstock.load_model(here.root / "data" / "model").predict([photo.read_bytes()])
    assert seen["label"] == expected.label
    assert seen["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
