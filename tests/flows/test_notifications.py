"""What the server does by itself: it reports failures, promotions and drift, and retrains when files arrive."""

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.images import put
from tests.serving import Api, server as booted, until
from tests.workspace import Workspace, environment

pytestmark = pytest.mark.slow  # each waits for servers and workers

SECRET = "token-that-nobody-is-to-see"


@pytest.fixture(scope="module")
def api(flow_ran_in, tmp_path_factory) -> Iterator[Api]:
    """A server of this module's own: other tests count what its automations do."""
    with booted(environment(tmp_path_factory.mktemp("home")) | {"PREFECT_UI_URL": "http://ui.invalid"}) as found:
        yield found


@pytest.fixture
def hook() -> Iterator[tuple[str, list[str]]]:
    """A web server on loopback: its address, and the texts that were posted to it."""
    texts: list[str] = []

    class Note(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Note) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/{SECRET}", texts
        listening.shutdown()


def deploy(workspace: Workspace, api: Api, **env: str) -> str:
    done = workspace.run(sys.executable, "-m", "flows.ui.deploy", PREFECT_API_URL=api.url, **env)
    return done.stdout + done.stderr


def enabled(api: Api) -> dict[str, bool]:
    return {found["name"]: found["enabled"] for found in api.ask("automations/filter", {})}


def emit(api: Api, event: str, **payload: object) -> None:
    """Post an event as the docstring of flows/ui/inbox.py says."""
    one = {"id": str(uuid.uuid4()), "occurred": datetime.now(UTC).isoformat(), "event": event,
           "resource": {"prefect.resource.id": "rootstock.test"}, "payload": payload}  # fmt: skip
    api.ask("events", [one])


def test_notifications_without_an_address_are_deployed_but_disabled(api, flow_ran_in):
    deploy(flow_ran_in, api)
    assert enabled(api) == {
        "rootstock-crashed": True, "rootstock-inbox": True,
        "rootstock-failed": False, "rootstock-promoted": False, "rootstock-drift": False,
    }  # fmt: skip


def test_notifications_with_an_address_report_failures_promotions_and_drift(api, flow_ran_in, hook):
    address, texts = hook
    deploy(flow_ran_in, api)
    shown = deploy(flow_ran_in, api, ROOTSTOCK_WEBHOOK=address)
    assert SECRET not in shown
    assert all(enabled(api).values())
    emit(api, "rootstock.champion.promoted", version=3, run="wise-goat", reason='On "shed" 98 % instead of 30 %.')
    emit(api, "rootstock.drift.found", run="wise-goat", reason="shed: 40 unlabelled; drifted.")
    deployment = api.ask("deployments/name/pipeline/cpu")["id"]
    run = api.ask(f"deployments/{deployment}/create_flow_run", {"state": {"type": "PENDING"}, "name": "poor-owl"})
    failed = {"type": "FAILED", "name": "Failed", "message": "photos does not exist."}
    api.ask(f"flow_runs/{run['id']}/set_state", {"state": failed, "force": True})
    until(lambda: len(texts) >= 3, f"three notifications: {texts}")
    assert sorted(texts)[0].startswith('Rootstock: champion v3, by run wise-goat. On "shed" 98 % instead of 30 %.')
    assert sorted(texts)[1] == "Rootstock: drift found by run wise-goat. shed: 40 unlabelled; drifted."
    assert sorted(texts)[2].startswith(
        "Rootstock: pipeline poor-owl ended as Failed. photos does not exist. http://ui.invalid/runs"
    )
    shown = api.ask("block_documents/filter", {})
    assert SECRET not in json.dumps(shown)


def test_an_automation_that_a_person_has_disabled_stays_disabled(api, flow_ran_in, hook):
    deploy(flow_ran_in, api, ROOTSTOCK_WEBHOOK=hook[0])
    [drift] = [found for found in api.ask("automations/filter", {}) if found["name"] == "rootstock-drift"]
    api.ask(f"automations/{drift['id']}", {"enabled": False}, method="PATCH")
    deploy(flow_ran_in, api, ROOTSTOCK_WEBHOOK=hook[0])
    assert not enabled(api)["rootstock-drift"]
    assert enabled(api)["rootstock-failed"]


def test_arriving_files_start_a_retraining_once(api, flow_ran_in, tmp_path):
    workspace = flow_ran_in.copy(tmp_path / "workspace")
    workspace.set(retrain={"settle_seconds": 0.2})
    deploy(workspace, api)
    deployment = {"id": {"any_": [api.ask("deployments/name/retrain/cpu")["id"]]}}

    def started() -> list[dict]:
        return api.ask("flow_runs/filter", {"deployments": deployment})

    put(workspace.root / "data" / "inbox" / "shed" / "moss" / "1.png", 1)
    command, env = (
        [sys.executable, "-m", "flows.ui.inbox", "--every", "0.3"],
        workspace.env | {"PREFECT_API_URL": api.url},
    )
    for _ in range(2):  # a watcher that starts again does not announce again
        with subprocess.Popen(command, cwd=workspace.root, env=env, stderr=subprocess.PIPE, text=True) as watching:
            until((workspace.root / ".rootstock" / "inbox.announced").exists, "its look")
            until(started, "a run of retrain")
            (workspace.root / "params.yaml").rename(workspace.root / "moved.yaml")
            assert until(lambda: "params.yaml: not found" in watching.stderr.readline() or None, "a warning")
            (workspace.root / "moved.yaml").rename(workspace.root / "params.yaml")
            watching.terminate()
    assert len(started()) == 1
    put(workspace.root / "data" / "inbox" / "attic" / "_unlabelled" / "2.png", 2)
    with subprocess.Popen(command, cwd=workspace.root, env=env, stderr=subprocess.DEVNULL) as watching:
        until(lambda: len(started()) == 2, "a second run")
        watching.terminate()


def test_an_automation_of_an_unknown_deployment_is_an_error_that_names_it(api, flow_ran_in, tmp_path):
    workspace = flow_ran_in.copy(tmp_path / "workspace")
    path = workspace.root / "automations.yaml"
    path.write_text(path.read_text().replace("retrain/cpu", "retrain/tpu"))
    done = workspace.run(sys.executable, "-m", "flows.ui.deploy", check=False, PREFECT_API_URL=api.url)
    assert done.returncode == 1
    assert "deploy: automations.yaml: retrain/tpu is not a deployment of prefect.yaml" in done.stderr
