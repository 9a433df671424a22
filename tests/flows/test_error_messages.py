"""External errors end a flow with one sentence and exit status 1, wherever in the engine they are raised."""

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.flows.test_repro_and_flow import UP_TO_DATE, experiments
from tests.serving import server, until
from tests.slow import slow
from tests.workspace import ROOT, Workspace, environment

FLOWS = ("flows.pipeline", "flows.compare", "flows.retrain", "flows.rollback")


def last_line(workspace: Workspace, flow: str, **env: str) -> str:
    """Run a flow that has to end badly; returns the sentence that it ends with."""
    done = workspace.run(sys.executable, "-m", flow, check=False, **env)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stdout + done.stderr, done.stderr[-4000:]
    name = flow.removeprefix("flows.")
    said = [line for line in done.stderr.splitlines() if line.startswith(f"{name}: ")]
    assert len(said) == 1, done.stderr[-2000:]
    return said[0]


@pytest.mark.parametrize("flow", ["flows.retrain", *slow(*(name for name in FLOWS if name != "flows.retrain"))])
def test_an_unreachable_server_is_reported_before_any_work(workspace, flow):
    said = last_line(workspace, flow, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert "The Prefect server at http://127.0.0.1:9/api" in said
    assert "make ui" in said and "PREFECT_API_URL" in said
    assert not (workspace.root / "data" / "dataset").exists()


def test_the_demo_says_in_one_sentence_what_is_wrong_with_params_yaml(workspace):
    (workspace.root / "params.yaml").write_text("ingest: {sourcse: []}\n")
    done = workspace.run(sys.executable, "-m", "benchmarks.retrain_demo", check=False, PYTHONPATH=str(ROOT))
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("retrain-demo: params.yaml: unknown key ingest.sourcse")


@pytest.mark.parametrize("seconds", ["-1", *slow("0", "nan")])
def test_a_time_between_two_looks_at_the_inbox_is_above_zero(workspace, seconds):
    named = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = workspace.run(sys.executable, "-m", "flows.ui.inbox", "--every", seconds, check=False, **named)
    said = f"inbox: --every is {seconds}; expected a number of seconds above 0.\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.slow  # half a minute for a server of its own
def test_a_run_whose_server_dies_keeps_its_finished_work_and_reports_the_server(workspace, tmp_path):
    with server(environment(tmp_path / "home")) as api:
        workspace.set(finetune={"stages": [{"unfreeze": "all", "epochs": 40, "lr": 0.0005}]})
        known = {"PREFECT_API_URL": api.url, "PREFECT_CLIENT_MAX_RETRIES": "1"}
        ended: list[str] = []
        running = Thread(target=lambda: ended.append(last_line(workspace, "flows.pipeline", **known)))
        running.start()
        until(lambda: any(run.stages().get("fine_tune") == "Running" for run in api.runs()), "training", 120)
    running.join()
    assert f"The Prefect server at {api.url}" in ended[0] and "is kept" in ended[0]
    assert workspace.status() == UP_TO_DATE
    assert len(experiments(workspace)) == 1


def test_a_server_that_answers_nonsense_is_reported(workspace):
    class Nonsense(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Nonsense) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/api"
        assert address in last_line(workspace, "flows.pipeline", PREFECT_API_URL=address)
        server.shutdown()


def test_an_unwritable_prefect_home_is_reported_before_any_work(workspace, tmp_path):
    (tmp_path / "file").write_text("")
    said = last_line(workspace, "flows.pipeline", PREFECT_HOME=str(tmp_path / "file"))
    assert str(tmp_path / "file") in said and "PREFECT_HOME" in said


@pytest.mark.slow
def test_a_data_folder_that_is_a_link_is_reported_before_any_work(workspace, tmp_path):
    (workspace.root / "data").rename(tmp_path / "disk")
    (workspace.root / "data").symlink_to(tmp_path / "disk")
    assert "data is a link to" in last_line(workspace, "flows.pipeline")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give up the right to write everywhere")
@pytest.mark.slow
def test_an_unwritable_cache_is_named(workspace):
    cache = Path(workspace.root / ".dvc/cache")
    cache.mkdir()
    cache.chmod(0o555)
    drop = "-dac_override,-dac_read_search"
    command = ("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", sys.executable, "-m", "flows.pipeline")
    done = workspace.run(*command, check=False)
    cache.chmod(0o755)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert str(cache) in done.stderr and "This user may not" in done.stderr
    said = [line for line in done.stderr.splitlines() if str(cache) in line]
    assert len(said) == 1 and said[0].startswith("pipeline: ")  # once, whether a task or the flow says it
