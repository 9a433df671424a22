"""`make ui`: server, workers and deployments on one machine, and what a person does with them, by the UI's own API."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from urllib.error import HTTPError
from urllib.request import urlopen

import pandas as pd
import psutil
import pytest

from rootstock.config.params_file import load
from tests.flows.test_repro_and_flow import STAGES, UP_TO_DATE
from tests.serving import Run, free_port, until
from tests.started_ui import Ui, started, workers
from tests.workspace import CLASSES

SLOW = {"stages": [{"unfreeze": "all", "epochs": 400, "lr": 0.0005}]}


pytestmark = pytest.mark.slow  # a UI of its own, with workers


@pytest.fixture(scope="module")
def ui(flow_ran_in, tmp_path_factory) -> Iterator[Ui]:
    """The UI of a workspace in which the flow has run."""
    with started(flow_ran_in.copy(tmp_path_factory.mktemp("ui") / "workspace")) as found:
        yield found


@pytest.fixture(autouse=True)
def committed_params(request) -> Iterator[None]:
    """Every test starts with params.yaml as it was committed."""
    yield
    if "ui" in request.fixturenames:
        request.getfixturevalue("ui").workspace.run("git", "checkout", "-q", "params.yaml")


def test_the_ui_deploys_what_prefect_yaml_names_with_forms_limits_and_workers(ui):
    deployments = {found["entrypoint"].partition(":")[2]: found for found in ui.api.ask("deployments/filter", {})}
    flows = {"pipeline", "retrain", "compare", "rollback", "cache", "predict", "export", "fine_tune"}
    assert set(deployments) == flows
    pipeline = deployments["pipeline"]
    assert pipeline["global_concurrency_limit"]["limit"] == 1
    assert pipeline["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    for found in deployments.values():
        assert found["description"]
        assert found["tags"] == ["rootstock"]
        assert found["enforce_parameter_schema"]
    fields = pipeline["parameter_openapi_schema"]["definitions"]["Finetune"]["properties"]
    assert fields["augment"]["enum"] == ["none", "crop", "crop_flip", "randaugment"]
    until(lambda: workers(ui, "cpu") + workers(ui, "gpu") == ["cpu-here", "gpu-here"], "a worker for each pool")
    automations = {found["name"]: found["enabled"] for found in ui.api.ask("automations/filter", {})}
    assert automations == dict.fromkeys(("rootstock-crashed", "rootstock-inbox"), True) | dict.fromkeys(
        ("rootstock-failed", "rootstock-promoted", "rootstock-drift"), False
    )


def test_the_ui_listens_only_on_loopback(ui):
    def listening(port: int) -> set[str]:
        return {
            connection.laddr.ip
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        }

    assert listening(ui.port) == listening(ui.port + 1) == {"127.0.0.1"}


def test_predictions_and_an_export_are_made_by_a_worker_which_reads_only_under_its_roots(ui):
    classified = ui.api.start("predict/cpu", source="photos", out="predictions.csv", top=2)
    exported = ui.api.start("export/cpu", format="onnx", out="exported")
    outside = ui.api.start("predict/cpu", source="/etc", out="predictions.csv")
    for run in (classified, exported):
        assert run.ended()["name"] == "Completed", run.logs()
    rows = pd.read_csv(ui.workspace.root / "predictions.csv")
    assert len(rows) == 45 and set(rows["label"]) <= set(CLASSES)
    assert "45 images" in classified.page()["state"]["message"]
    assert (ui.workspace.root / "exported" / "model.onnx").exists()
    state = outside.ended()
    assert state["name"] == "Failed" and "lies under none of" in state["message"]


def test_starting_the_ui_twice_prints_its_address_and_changes_nothing(ui):
    def all_that_runs() -> list[int]:
        children = psutil.Process(ui.process.pid).children()
        return sorted(child.pid for child in children if "flows.ui.deploy" not in child.cmdline())

    before = {found["id"]: found["created"] for found in ui.api.ask("deployments/filter", {})}
    running = all_that_runs()
    done = ui.workspace.run(sys.executable, "-m", "flows.ui", check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f"ui: The UI of this workspace is already running: http://127.0.0.1:{ui.port}"
    assert {found["id"]: found["created"] for found in ui.api.ask("deployments/filter", {})} == before
    assert all_that_runs() == running


def test_a_run_ends_with_the_verdict_and_names_its_experiment(ui):
    run = ui.api.start(head={"l2": [3.0]})
    state = run.ended()
    name = run.page()["name"]
    assert state["name"] == "Completed"
    assert ": test accuracy " in state["message"]
    assert f"Kept as experiment {name}" in state["message"]
    stages = run.stages()
    assert [stages[stage] for stage in STAGES] == ["Cached"] * 3 + ["Completed"] * 3
    artifacts = run.artifacts()
    verdict = artifacts["verdict"]["data"]
    for wanted in ("won:", "Head on frozen features", "Fine-tuned", f"dvc exp apply {name}", "data:image/png"):
        assert wanted in verdict
    for key, caption in {"sample": "A sample of 45 images", "curves": "Loss and", "confusion": "test images"}.items():
        assert caption in artifacts[key]["data"]
        assert "data:image/png" in artifacts[key]["data"]
    [address] = re.findall(rf"http://127.0.0.1:{ui.port + 1}/[\w-]{{20,}}/{name}.html", artifacts["report"]["data"])
    with urlopen(address, timeout=5) as page:
        assert b"<html" in page.read()
    shown = ui.workspace.run("dvc", "exp", "show", "--json").stdout
    [kept] = [entry for base in json.loads(shown) for entry in base["experiments"] or [] if entry["name"] == name]
    data = kept["revs"][0]["data"]
    assert data["params"]["params.yaml"]["data"]["head"]["l2"] == [3.0]
    assert data["metrics"]["data/report/metrics.json"]["data"]["winner"] in ("head", "finetuned")
    earlier = ui.workspace.run("dvc", "exp", "list", "--name-only").stdout.split()
    ui.workspace.run("dvc", "exp", "apply", next(other for other in earlier if other != name))
    assert ui.workspace.status() == UP_TO_DATE
    assert load(ui.workspace.root / "params.yaml").head.l2 == (10.0, 0.1)


def test_an_invalid_value_is_refused_by_name_before_a_run_exists(ui):
    with pytest.raises(HTTPError) as refused:
        ui.api.start(finetune={**SLOW, "stages": [{"unfreeze": "all", "epochs": 1, "lr": 7}]})
    assert "finetune.stages[0].lr" in json.load(refused.value)["detail"]


def test_an_invalid_value_that_the_form_cannot_detect_fails_the_run_by_name(ui):
    run = ui.api.start(finetune={"stages": [{"unfreeze": "last_blok", "epochs": 1, "lr": 0.1}]})
    assert "Did you mean last_block?" in run.ended()["message"]


def test_a_failed_stage_shows_a_readable_error_and_no_traceback(ui):
    run = ui.api.start(ingest={"sources": [{"path": "nowhere", "domain": "garden"}]})
    state = run.ended()
    assert state["name"] == "Failed"
    assert state["message"].startswith("ingest.sources: nowhere does not exist.")
    assert run.stages()["ingest"] == "Failed"
    until(lambda: state["message"] in run.logs(), "the error among the logs")
    time.sleep(3)  # the process ends after its run has
    assert run.logs().count(state["message"]) == 1
    assert not any("Traceback" in line or "NotReady" in line for line in run.logs())


def test_a_cancelled_run_stops_within_ten_seconds_and_the_queued_one_resumes_its_training(ui):
    run = ui.api.start(finetune=SLOW)
    until(lambda: run.stages().get("fine_tune") == "Running", "training")
    checkpoint = ui.workspace.root / ".rootstock" / "finetune.pt"
    until(checkpoint.exists, "a checkpoint")
    queued = ui.api.start(finetune=SLOW)
    time.sleep(4)  # the worker polls twice
    assert queued.page()["state"]["type"] in ("SCHEDULED", "PENDING")
    start = time.monotonic()
    run.cancel()
    assert run.ended(20)["name"] == "Cancelled"
    assert time.monotonic() - start < 10
    assert run.page()["state"]["message"] == "The run was cancelled."  # by itself: its worker says so seconds later
    assert run.stages() == dict.fromkeys(STAGES[:4], "Cached") | {"fine_tune": "Cancelled", "evaluate": "Cancelled"}
    until(lambda: queued.stages().get("fine_tune") == "Running", "the queued run's turn")
    until(lambda: any(line.startswith("Resuming after epoch") for line in queued.logs()), "its going on")
    process_of(ui, queued).terminate()  # as a container is stopped: nobody cancelled it
    assert queued.ended(20)["message"] == "Its process was terminated: the worker was stopped."
    assert queued.stages()["fine_tune"] == "Crashed"
    ui.workspace.run("dvc", "status")
    ui.workspace.run("python", "-c", "from tasks.bridge.workspace import writing\nwith writing(): pass")


def process_of(ui: Ui, run: Run) -> psutil.Process:
    """Find the process of a flow run."""
    family = psutil.Process(ui.process.pid).children(recursive=True)
    return next(one for one in family if one.environ().get("PREFECT__FLOW_RUN_ID") == run.id)


def test_a_run_waits_for_one_that_was_started_on_a_terminal(ui):
    hold = "import time\nfrom tasks.bridge.workspace import writing\nwith writing(): print(flush=True); time.sleep(99)"
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=ui.workspace.root, env=ui.workspace.env, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        run = ui.api.start()
        until(lambda: any("Another run is writing" in line for line in run.logs()), "its saying so")
        holder.kill()
    assert run.ended()["name"] == "Completed"


def test_the_form_follows_params_yaml(ui):
    ui.workspace.set(extract={"batch_size": 17})

    def default() -> int:
        found = ui.api.ask("deployments/name/pipeline/cpu")
        return found["parameter_openapi_schema"]["properties"]["extract"]["default"]["batch_size"]

    until(lambda: default() == 17, "the new default")


def test_ctrl_c_stops_every_process_and_the_run_is_cancelled(ui):
    ui.workspace.run("git", "checkout", "-q", "params.yaml")
    run = ui.api.start(finetune=SLOW)
    until(lambda: run.stages().get("fine_tune") == "Running", "training")
    family = psutil.Process(ui.process.pid).children(recursive=True)
    assert len(family) >= 4
    os.killpg(ui.process.pid, signal.SIGINT)
    assert ui.process.wait(60) == 0
    assert not [process for process in family if process.is_running()]
    with started(ui.workspace) as again:
        assert again.api.ask(f"flow_runs/{run.id}")["state"]["name"] == "Cancelled"


def test_a_killed_ui_leaves_no_process_behind_and_can_be_started_again(after_flow):
    with started(after_flow) as killed:
        run = killed.api.start(finetune=SLOW)
        until(lambda: run.stages().get("fine_tune") == "Running", "training")
        family = psutil.Process(killed.process.pid).children(recursive=True)
        killed.process.kill()
    until(lambda: not [process for process in family if process.is_running()], "their end", 10)
    after_flow.run("git", "checkout", "-q", "params.yaml")
    done = after_flow.run(sys.executable, "-m", "flows.ui", "--env", check=False)
    assert done.stderr.strip() == "ui: The UI of this workspace is not running; start it: make ui"
    with started(after_flow) as again:
        assert again.api.secret != killed.api.secret
        assert again.api.ask(f"flow_runs/{run.id}")["state"]["name"] == "Crashed"
        assert again.api.start().ended()["name"] == "Completed"


def test_a_server_that_dies_is_reported_and_no_process_is_left_behind(workspace):
    with started(workspace) as ui:
        family = psutil.Process(ui.process.pid).children(recursive=True)
        next(one for one in family if "flows.ui.server" in one.cmdline()).kill()
        said = ui.process.communicate(timeout=60)[0]
    assert ui.process.returncode == 1
    assert "ui: The Prefect server ended; see" in said and "Traceback" not in said
    until(lambda: not [one for one in family if one.is_running()], "their end", 10)


def test_a_database_that_does_not_answer_is_a_readable_error(workspace):
    nobody = f"postgresql+asyncpg://me:my-password@127.0.0.1:{free_port()}/prefect"
    command = [sys.executable, "-m", "flows.ui", "--port", str(free_port())]
    done = workspace.run(*command, check=False, PREFECT_SERVER_DATABASE_CONNECTION_URL=nobody)
    assert done.returncode == 1
    assert "ui: The Prefect server did not start" in done.stderr and "ConnectionRefusedError" in done.stderr
    assert not any(word in done.stderr for word in ("Traceback", "  File ", "my-password"))


def test_a_taken_port_is_a_clear_error(workspace):
    busy = free_port()
    hold = f"import socket, time; s = socket.create_server(('127.0.0.1', {busy})); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        done = workspace.run(sys.executable, "-m", "flows.ui", "--port", str(busy), check=False)
        holder.kill()
    assert done.returncode == 1
    assert f"ui: Port {busy} is used by another program; choose another: make ui PORT=" in done.stderr


@pytest.mark.parametrize(
    ("options", "env", "said"),
    [
        (["--port", "65535"], {}, "ui: Port 65536 does not exist: ports range from 1 to 65535"),
        (None, {"PREFECT_SERVER_API_PORT": "4x"}, "invalid int value: '4x'"),
        ([], {"PREFECT_SERVER_API_AUTH_STRING": "admin:pässword"}, "PREFECT_SERVER_API_AUTH_STRING contains non-ASCII"),
    ],
)
def test_invalid_options_and_settings_are_readable_errors(workspace, options, env, said):
    port = [] if options is None else ["--port", str(free_port())]
    done = workspace.run(sys.executable, "-m", "flows.ui", *port, *(options or ()), check=False, **env)
    assert done.returncode != 0
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_secret_set_by_the_user_is_required_and_never_printed(workspace):
    secret = "admin:a-secret-of-this-test"
    with started(workspace, PREFECT_SERVER_API_AUTH_STRING=secret) as asking:
        assert asking.api.secret == secret
        assert secret not in asking.printed
        with pytest.raises(HTTPError, match="401"):
            replace(asking.api, secret="").ask("flows/count", {})
        until(lambda: workers(asking, "cpu") == ["cpu-here"], "a worker that got in")
