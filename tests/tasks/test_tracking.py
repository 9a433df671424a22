"""Tracking never ends a run: what prevents it is a warning in a sentence, soon."""

import socket
import time

import pytest

from tasks.bridge import mlflow_tracker, tracking
from tests.serving import free_port


@pytest.fixture
def results(flow_ran_in, monkeypatch):
    """A process in a workspace in which a flow has run."""
    monkeypatch.chdir(flow_ran_in.root)
    return flow_ran_in


@pytest.fixture
def silent_server():
    """A server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_nothing_is_tracked_by_default(results):
    assert tracking.track("none", "wise-goat") == ""


def test_an_mlflow_server_that_is_gone_is_a_warning_without_a_stack_trace(results, monkeypatch, caplog):
    address = f"http://me:hunter2@127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert tracking.track("mlflow", "wise-goat") == ""
    [warning] = caplog.records
    assert warning.levelname == "WARNING" and not warning.exc_info
    shown = address.replace("me:hunter2", "***")
    assert warning.getMessage() == (
        f"Not tracked in MLflow: the server at {shown} (MLFLOW_TRACKING_URI) does not answer. The results are here; "
        "the next run tries again, and so does `python -m flows.track`."
    )


def test_a_silent_mlflow_server_holds_a_run_up_no_longer_than_its_first_question(
    results, silent_server, monkeypatch, caplog
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_server)
    assert mlflow_tracker.FIRST == {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    monkeypatch.setitem(mlflow_tracker.FIRST, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    start = time.monotonic()
    assert tracking.track("mlflow", "wise-goat") == ""
    assert time.monotonic() - start < 5
    assert "does not answer" in caplog.text


def test_weights_and_biases_without_a_key_is_a_warning_that_says_how_to_log_in(results, monkeypatch, caplog, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_DIR", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path))
    assert tracking.track("wandb", "wise-goat") == ""
    assert "wandb login" in caplog.text and not caplog.records[-1].exc_info


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["none", "refused"])
def test_a_weights_and_biases_server_that_is_silent_or_gone_is_a_warning(
    answer, results, silent_server, monkeypatch, caplog, tmp_path
):
    monkeypatch.setattr("tasks.bridge.wandb_tracker.ANSWER_S", 3.0)  # by name: the module takes seconds to import
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    address = silent_server if answer == "none" else f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("WANDB_BASE_URL", address)
    start = time.monotonic()
    assert tracking.track("wandb", "wise-goat") == ""
    assert time.monotonic() - start < 20
    assert "Not tracked in Weights & Biases: " in caplog.text and not caplog.records[-1].exc_info


def test_results_that_are_damaged_are_a_warning(after_flow, monkeypatch, caplog):
    (after_flow.root / "data" / "report" / "test.json").write_text("{")
    monkeypatch.chdir(after_flow.root)
    assert tracking.track("mlflow", "wise-goat") == ""
    assert "Not tracked in MLflow: data/report/test.json is damaged" in caplog.text
