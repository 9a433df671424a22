"""The flow under a real Prefect server: states, progress and the form that a person fills in."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace
from urllib.error import HTTPError, URLError

import pytest
from prefect.states import Failed

from flows.pipeline import Verdict, table
from rootstock.system.errors import RootstockError
from tasks.bridge.orchestration import as_task
from tasks.bridge.stage import Stage, Summary
from tests.flows.test_repro_and_flow import STAGES
from tests.serving import free_port
from tests.terminal import run_on_terminal
from tests.workspace import ROOT, on_one_server


@pytest.mark.slow
def test_the_server_shows_the_states_and_the_progress_of_a_run(server, workspace):
    run = server.run_of(lambda: workspace.flow(PREFECT_API_URL=server.url))
    assert run.stages() == dict.fromkeys(STAGES, "Completed")
    tasks = {task["name"]: task for task in server.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [run.id]}}})}
    # ingest and backbone do not wait for each other
    assert tasks["backbone"]["start_time"] < tasks["ingest"]["end_time"]
    assert tasks["ingest"]["start_time"] < tasks["backbone"]["end_time"]
    progress = {artifact["description"] for artifact in run.artifacts().values() if artifact["type"] == "progress"}
    assert "ingest: 45 of 45 images" in progress
    assert "extract: 45 of 45 images" in progress
    assert any(text.startswith("fine_tune: ") for text in progress)
    again = server.run_of(lambda: workspace.flow(PREFECT_API_URL=server.url))
    assert again.stages() == dict.fromkeys(STAGES, "Cached")
    assert {"sample", "curves", "confusion", "verdict"} <= set(again.artifacts())  # the same to see


def test_the_command_prints_one_line_per_stage_and_nothing_about_servers_or_states(after_flow):
    done = after_flow.run(sys.executable, "-m", "flows.pipeline")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:7]].count("stage") == 1 and lines[0].split() == [
        "stage",
        "seconds",
        "result",
    ]
    assert sorted(line.split()[0] for line in lines[1:7]) == sorted(STAGES)
    assert all(line.count("cached: ") == 1 for line in lines[1:7])
    [said] = done.stderr.splitlines()
    assert said.startswith("Nothing new to keep: all results are those of experiment ")


@pytest.mark.slow
def test_a_former_name_in_params_yaml_is_warned_of_once_in_the_words_of_any_warning(after_flow):
    path = after_flow.root / "params.yaml"
    path.write_text(path.read_text().replace("max_decode_seconds", "seconds_a_file"))
    said = after_flow.run(sys.executable, "-m", "flows.pipeline").stderr
    warning = "warning: params.yaml: ingest.seconds_a_file was renamed to max_decode_seconds"
    assert said.count("seconds_a_file was renamed") == 1 and said.startswith(warning)


@pytest.mark.slow
def test_neither_dvc_nor_prefect_adds_output_on_a_terminal(after_flow):
    env = {name: value for name, value in after_flow.env.items() if name not in ("CI", "DO_NOT_TRACK")}
    after_flow.set(evaluate={"mistakes": 11})  # a stage that runs, and that DVC records
    said = run_on_terminal([sys.executable, "-m", "flows.pipeline"], cwd=after_flow.root, env=env | on_one_server)
    shown = re.split(r"[\r\n]+", re.sub(r"\x1b\[\d*[mAK]", "", said))
    our_bar = re.compile(r"\w+: +\d+%\||\w+: 0 images|warning: evaluate: ")
    first_words = [line.split()[0] for line in shown if line.strip() and not our_bar.match(line)]
    stages_and_notes = ["stage", *STAGES, "Kept"]  # ingest and backbone run side by side
    assert sorted(first_words[:-4]) == sorted(stages_and_notes), said
    assert first_words[-4:] == ["validation", "validation", "test", "report:"]


@pytest.mark.slow
def test_verbose_prints_everything_that_a_run_logs(after_flow):
    done = after_flow.run(sys.executable, "-m", "flows.pipeline", "--verbose")
    for part in ("Starting temporary server", "Beginning flow run", "Runs because always changed", "Finished in state"):
        assert part in done.stderr


@pytest.mark.slow
def test_messages_of_a_stage_appear_once_in_the_logs_of_the_run_and_once_on_the_terminal(server, after_flow):
    (after_flow.root / "photos").rename(after_flow.root / "elsewhere")
    command, printed = [sys.executable, "-m", "flows.pipeline"], []
    run = server.run_of(lambda: printed.append(after_flow.run(*command, PREFECT_API_URL=server.url).stderr))
    logged = run.logs()
    assert printed[0].count("Its 45 earlier images are kept") == 1
    assert sum("Its 45 earlier images are kept" in message for message in logged) == 1
    assert any(message.startswith("ingest: nothing new, 45 images") for message in logged)


@pytest.mark.slow
def test_an_error_in_a_stage_fails_the_run_with_the_message_of_the_error(server, workspace):
    workspace.set(ingest={"sources": [{"path": "nowhere", "domain": "garden"}]})
    ended = []
    command = [sys.executable, "-m", "flows.pipeline"]
    run = server.run_of(lambda: ended.append(workspace.run(*command, check=False, PREFECT_API_URL=server.url)))
    assert ended[0].returncode == 1
    last = [line for line in ended[0].stderr.splitlines() if line.startswith("pipeline: ")]
    assert last == ["pipeline: ingest.sources: nowhere does not exist. Expected a folder, an archive or a manifest."]
    assert run.stages()["ingest"] == "Failed"
    assert run.page()["state"]["message"].startswith("ingest.sources: nowhere does not exist.")


@pytest.mark.slow
def test_a_download_that_fails_is_tried_three_times(server, workspace):
    workspace.set(backbone={"weights": "pretrained"})
    soon = "from tasks.bridge import orchestration\norchestration.RETRY_AFTER_S[:] = [0.1, 0.1]\n"
    command = [sys.executable, "-c", f"{soon}from flows.pipeline import main\nmain()"]
    nobody = f"http://127.0.0.1:{free_port()}"
    env = {
        "PREFECT_API_URL": server.url,
        "ROOTSTOCK_WEIGHTS_MIRROR": nobody,
        "TORCH_HOME": str(workspace.root / "torch"),
    }
    run = server.run_of(lambda: workspace.run(*command, check=False, **env))
    assert run.page()["state"]["message"].startswith("backbone.weights: shufflenet_v2_x0_5's weights cannot be loaded")
    tasks = server.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [run.id]}}})
    assert {task["name"].partition("-")[0]: task["run_count"] for task in tasks}["backbone"] == 3


def caused(*causes: BaseException) -> RootstockError:
    """Chain errors, as `raise ... from` does; the first is the outermost cause."""
    error = outermost = RootstockError("said to a person")
    for cause in causes:
        error.__cause__ = cause
        error = cause
    return outermost


@pytest.mark.parametrize(
    ("causes", "again"),
    [
        ([], False),
        ([ConnectionRefusedError()], True),
        ([TimeoutError()], True),
        ([URLError("no route")], True),
        ([HTTPError("http://x", 503, "", {}, None)], True),
        ([HTTPError("http://x", 429, "", {}, None)], True),
        ([HTTPError("http://x", 404, "", {}, None)], False),
        ([FileNotFoundError()], False),
        ([FileNotFoundError(), ConnectionResetError()], True),
        ([PermissionError()], False),
        ([ValueError()], False),
    ],
)
def test_only_transient_errors_are_retried_and_the_retry_is_logged(causes, again, caplog):
    ingest, run = as_task(Stage(lambda params: Summary(0, ""))), SimpleNamespace(name="ingest", run_count=1)
    ended = Failed(message="The mirror does not answer.", data=caused(*causes))
    assert ingest.retry_condition_fn(ingest, run, ended) is again
    assert caplog.messages == ["ingest: The mirror does not answer. Retrying in 10 s."] * again


def test_the_form_has_a_described_field_for_every_parameter():
    show = "import json; from flows.pipeline import pipeline; print(json.dumps(pipeline.parameters.model_dump()))"
    done = subprocess.run([sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True)
    schema = json.loads(done.stdout)
    assert set(schema["properties"]) == {
        "seed",
        "ingest",
        "backbone",
        "extract",
        "head",
        "finetune",
        "evaluate",
        "track",
    }
    definitions = schema["definitions"]

    def described(field: dict) -> bool:
        section = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
        return bool(field.get("description") or section.get("description"))

    assert all(map(described, schema["properties"].values()))
    assert "resnet34" in definitions["Backbone"]["properties"]["name"]["anyOf"][0]["enum"]
    assert all(described(field) for model in definitions.values() for field in model["properties"].values())


def test_an_accuracy_lies_within_its_interval_wherever_it_is_printed():
    accuracy = {"value": 0.99965, "low": 0.99838, "high": 0.99996}
    test = {"winner": "head", "images": 3000, "groups": 3000, "accuracy": accuracy}
    verdict = Verdict([], {"head": {"accuracy": accuracy}}, test)
    assert table(verdict).splitlines()[:2] == [
        "validation accuracy, frozen-feature head   99.9%",
        "test accuracy 99.9% (95 % interval 99.8 to 99.9%), on 3,000 test images, not used for any choice",
    ]
    assert verdict.headline == "Head on frozen features: test accuracy 99.9% (3,000 images)"


def test_the_summary_names_one_model_if_nothing_was_fine_tuned_and_counts_groups_of_test_images():
    accuracy = {"value": 0.91, "low": 0.77, "high": 0.968}
    test = {"winner": "head", "images": 89, "groups": 21, "accuracy": accuracy}
    lines = table(Verdict([], {"head": {"accuracy": {"value": 0.912}}}, test)).splitlines()
    assert lines[:2] == [
        "validation accuracy, frozen-feature head   91.2%",
        "test accuracy 91.0% (95 % interval 77.0 to 96.8%), on 89 test images in 21 groups, not used for any choice",
    ]
