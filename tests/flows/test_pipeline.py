"""The flow under a real Prefect server: states, progress and the form that a person fills in."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from urllib.request import Request, urlopen

import pytest

from tests.workspace import ROOT, environment


@pytest.fixture(scope="module")
def server(prefect_home):
    """A Prefect server of its own on a free port of loopback; gives its API's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        command, env=environment(prefect_home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    api = f"http://127.0.0.1:{port}/api"
    try:
        wait_until_healthy(api, process)
        yield api
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def wait_until_healthy(api: str, process: subprocess.Popen) -> None:
    for _ in range(120):
        assert process.poll() is None, "the server did not start; see the constraints on fastapi and prefect"
        try:
            with urlopen(f"{api}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server was not up after a minute")


def ask(api: str, path: str, **body) -> list[dict]:
    request = Request(f"{api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_a_server_boots_and_shows_states_and_progress_of_a_run(server, workspace):
    workspace.flow(PREFECT_API_URL=server)
    runs = {run["name"]: run for run in ask(server, "task_runs/filter")}
    assert {run["state"]["name"] for run in runs.values()} == {"Completed"}
    assert set(runs) == {"ingest", "backbone", "extract", "train_head", "fine_tune", "evaluate"}
    # ingest and backbone do not wait for each other
    assert runs["backbone"]["start_time"] < runs["ingest"]["end_time"]
    assert runs["ingest"]["start_time"] < runs["backbone"]["end_time"]
    artifacts = ask(server, "artifacts/filter")
    progress = {artifact["description"] for artifact in artifacts if artifact["type"] == "progress"}
    assert "ingest: 45 of 45 images" in progress
    assert "extract: 45 of 45 images" in progress
    assert any(text.startswith("fine_tune: ") for text in progress)
    before = len(ask(server, "task_runs/filter"))
    workspace.flow(PREFECT_API_URL=server)
    again = sorted(ask(server, "task_runs/filter"), key=lambda run: run["start_time"])[before:]
    assert {run["state"]["name"] for run in again} == {"Cached"}
    assert {run["state"]["type"] for run in again} == {"COMPLETED"}


def test_what_a_stage_logs_is_among_the_logs_of_the_run(server, after_flow):
    (after_flow.root / "photos").rename(after_flow.root / "elsewhere")
    after_flow.flow(PREFECT_API_URL=server)
    logged = [entry["message"] for entry in ask(server, "logs/filter", sort="TIMESTAMP_DESC", limit=60)]
    assert sum("Its 45 images of before stay" in message for message in logged) == 1
    assert any(message.startswith("ingest: nothing new, 45 images") for message in logged)


def test_an_error_of_a_stage_fails_the_run_with_the_persons_message(server, workspace):
    workspace.set(ingest={"sources": [{"path": "nowhere", "domain": "garden"}]})
    done = workspace.run(sys.executable, "-m", "flows.pipeline", check=False, PREFECT_API_URL=server)
    assert done.returncode == 1
    last = [line for line in done.stderr.splitlines() if line.startswith("pipeline: ")]
    assert last == ["pipeline: ingest.sources: nowhere is not there. Name a folder, an archive or a manifest."]
    failed = [run for run in ask(server, "task_runs/filter") if run["state"]["type"] == "FAILED"]
    assert [run["name"] for run in failed] == ["ingest"]
    assert "nowhere is not there" in failed[0]["state"]["message"]


def test_the_form_has_a_described_field_for_every_parameter():
    show = "import json; from flows.pipeline import pipeline; print(json.dumps(pipeline.parameters.model_dump()))"
    done = subprocess.run([sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True)
    schema = json.loads(done.stdout)
    assert set(schema["properties"]) == {"seed", "ingest", "backbone", "extract", "head", "finetune", "evaluate"}
    definitions = schema["definitions"]

    def described(field: dict) -> bool:
        section = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
        return bool(field.get("description") or section.get("description"))

    assert all(map(described, schema["properties"].values()))
    assert "resnet34" in definitions["Backbone"]["properties"]["name"]["enum"]
    assert all(described(field) for model in definitions.values() for field in model["properties"].values())
