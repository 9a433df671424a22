"""Who may access `make ui`, by HTTP and websockets; test_browser_access.py tests it in a browser."""

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import pytest
from prefect.workers.process import ProcessWorker
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from flows.ui import deploy
from tests.serving import until
from tests.started_ui import Ui, started, workers

pytestmark = pytest.mark.slow  # a server of its own

OPEN = {"/api/health": b"true", "/api/ready": b'{"message":"OK"}'}  # for probes
SOCKETS = ("events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled", "work_pools/cpu/workers/connect")
STRANGERS = (
    "http://evil.example", "https://127.0.0.1.evil.example", "http://127.0.0.1:1", "http://localhost:1", "null", "file://",
    "chrome-extension://abc",
)  # fmt: skip
NAMES = (
    "evil.example",
    "evil.example:4200",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "0.0.0.0",
    "[::1]",
    "",
)


@pytest.fixture(scope="module")
def ui(flow_ran_in, tmp_path_factory) -> Iterator[Ui]:
    """The UI of a workspace in which the flow has run."""
    with started(flow_ran_in.copy(tmp_path_factory.mktemp("access") / "workspace")) as found:
        yield found


def ask(port: int, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, bytes]:
    """Send a request as it is, with whatever headers; gives status and body."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest(method, path, skip_host="Host" in headers)
    sent = {"Content-Length": str(len(body or "")), **headers}
    for name, value in sent.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders((body or "").encode())
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_only_health_checks_are_answered_without_the_secret(ui):
    _, described = ask(ui.port, "GET", "/openapi.json")
    paths = json.loads(described)["paths"]
    routes = [(verb.upper(), f"/api{path}") for path, verbs in paths.items() for verb in verbs]
    assert len(routes) > 150
    for verb, path in routes:
        for stranger in ({}, {"Authorization": "Basic YWRtaW46cGFzcw=="}, {"Content_Type": "text/plain"}):
            concrete = re.sub(r"\\{[^}]*\\}", str(uuid4()), path)
            status, said = ask(ui.port, verb, concrete, "{}", **stranger)
            assert status == 401 or said == OPEN.get(path), f"{verb} {path}: {status}"


@pytest.mark.parametrize("origin", STRANGERS)
def test_a_page_of_another_site_is_refused_even_with_the_secret(ui, origin):
    for verb in ("GET", "POST", "OPTIONS", "DELETE"):
        status, _ = ask(ui.port, verb, "/api/flows/count", "{}", Origin=origin, **ui.api.known)
        assert status == 403, verb
    for path in SOCKETS:
        with pytest.raises(InvalidStatus), connect(f"{socket_url(ui)}/{path}", origin=origin, subprotocols=["prefect"]):
            pass
    status, _ = ask(ui.port, "POST", "/api/flows/count", "{}", Origin=f"http://127.0.0.1:{ui.port}", **ui.api.known)
    assert status == 200


def socket_url(ui: Ui) -> str:
    return f"ws://127.0.0.1:{ui.port}/api"


@pytest.mark.parametrize("path", SOCKETS)
@pytest.mark.parametrize("token", [None, "", "admin:pass", 7])
def test_a_websocket_sends_and_accepts_nothing_without_the_secret(ui, path, token):
    with connect(f"{socket_url(ui)}/{path}", subprotocols=["prefect"]) as socket:
        socket.send(json.dumps({"type": "auth", "token": token}))
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=10)
    with pytest.raises(InvalidStatus), connect(f"{socket_url(ui)}/{path}"):
        pass


@pytest.mark.parametrize("name", NAMES)
def test_a_request_to_another_host_name_is_refused_even_with_the_secret(ui, name):
    for path in ("/api/flows/count", "/", "/api/health", "/enter", "/ui-settings"):
        status, said = ask(ui.port, "GET", path, Host=name, **ui.api.known)
        assert status in (400, 403), path
        assert b"<html" not in said
    report = a_report(ui)
    assert ask(ui.port + 1, "GET", report, Host=name)[0] in (400, 403)
    assert ask(ui.port + 1, "GET", report, Host=f"127.0.0.1:{ui.port + 1}")[0] == 200


def a_report(ui: Ui) -> str:
    """Put a report where the UI serves it; gives its path there."""
    path = ui.workspace.root / ".rootstock" / "reports" / "mine.html"
    path.write_text("<html>mine</html>")
    settings = json.loads((ui.workspace.root / ".rootstock" / "ui" / "settings.json").read_text())
    return f"{urlsplit(settings['ROOTSTOCK_REPORTS_URL']).path}/mine.html"


def test_reports_are_served_only_at_their_full_address_and_nothing_else_is_served(ui, tmp_path):
    report = a_report(ui)
    key = report.split("/")[1]
    folder = ui.workspace.root / ".rootstock" / "reports"
    secret = tmp_path / "secret.html"
    secret.write_text("secret")
    (folder / "linked.html").symlink_to(secret)
    (folder / "other").mkdir()
    (folder / "other" / "deep.html").write_text("secret")
    (folder / "folder.html").mkdir()
    os.mkfifo(folder / "pipe.html")
    (folder / ".hidden.html").write_text("secret")
    (folder / "key.txt").write_text("secret")
    assert ask(ui.port + 1, "GET", report) == (200, b"<html>mine</html>")
    turned_away = [
        "/", f"/{key}", f"/{key}/", "/mine.html", "/x/mine.html", f"/{key}/linked.html", f"/{key}/other/",
        f"/{key}/other/deep.html", f"/{key}/folder.html", f"/{key}/folder.html/", f"/{key}/pipe.html",
        f"/{key}/.hidden.html", f"/{key}/key.txt",
        f"/{key}/../reports/mine.html", f"/{key}/..%2freports%2fmine.html", f"/{key}/%2e%2e/ui/settings.json",
        f"/{key}/%00.html",
        f"/{key}//etc/passwd", f"/{key}/%c3%b6.html", f"/{key}/%ff.html", "/%c3%b6/mine.html",
        f"/{key}/mine.html%00.html",
    ]  # fmt: skip
    for path in turned_away:
        status, said = ask(ui.port + 1, "GET", path)
        assert status == 404, path
        assert b"secret" not in said and b"mine.html" not in said


def test_whoever_starts_a_run_sets_neither_its_command_nor_its_environment(ui, tmp_path):
    made = tmp_path / "made"
    found = ui.api.ask("deployments/name/fine-tune/gpu")
    own = {"flow_id": found["flow_id"], "work_pool_name": "gpu"}
    ways = (
        {"command": f"touch {made}"}, {"env": {"PYTHONSTARTUP": str(made)}}, {"env.PATH": str(tmp_path)},
        {"working_dir": str(tmp_path)},
        {"command": None}, {"stream_output": False}, {"anything": 1},
    )  # fmt: skip
    for given in ways:
        asked = {
            "parameters": {"params": {}, "lock": "", "code": {}},
            "job_variables": given,
            "state": {"type": "SCHEDULED"},
        }
        status, said = ask(
            ui.port, "POST", f"/api/deployments/{found['id']}/create_flow_run", json.dumps(asked),
            Content_Type="application/json", **ui.api.known,
        )  # fmt: skip
        assert status == 422 and b"Additional properties are not allowed" in said, given
    # Where Prefect does not look at them, they change nothing.
    run = ui.api.ask(
        "flow_runs/",
        {**own, "job_variables": {"command": f"touch {made}", "env": {"A": "b"}}, "state": {"type": "SCHEDULED"}},
    )
    until(lambda: ui.api.ask(f"flow_runs/{run['id']}")["state"]["type"] in ("CRASHED", "FAILED"), "its end")
    assert not made.exists()


def test_a_work_pool_of_an_earlier_version_is_restricted_and_a_users_own_open_one_is_reported(ui):
    known = ui.workspace.env | ui.api.env
    refused = ui.api.ask("deployments/name/pipeline/cpu")["id"]  # starts nothing with variables that its pool refuses
    ui.api.ask(f"deployments/{refused}", {"job_variables": {"command": "touch x", "env": {"A": "b"}}}, method="PATCH")
    before = ProcessWorker.get_default_base_job_template()
    ui.api.ask("work_pools/cpu", {"base_job_template": before}, method="PATCH")
    ui.workspace.run(sys.executable, "-m", "flows.ui.deploy", **known)
    assert ui.api.ask("work_pools/cpu")["base_job_template"] == deploy.TEMPLATE
    assert ui.api.ask(f"deployments/{refused}")["job_variables"] == {}  # deployed again, as by the next `make ui`
    before["variables"]["properties"]["env"]["default"] = {"OMP_NUM_THREADS": "2"}
    ui.api.ask("work_pools/cpu", {"base_job_template": before}, method="PATCH")
    said = ui.workspace.run(sys.executable, "-m", "flows.ui.deploy", **known).stdout
    assert ui.api.ask("work_pools/cpu")["base_job_template"] == before
    assert "The work pool cpu, of type process, lets whoever starts a run set: command, env" in said
    ui.api.ask("work_pools/cpu", {"base_job_template": deploy.TEMPLATE}, method="PATCH")


def test_no_other_user_of_the_machine_sees_the_secret(ui):
    root = ui.workspace.root / ".rootstock"
    assert len(ui.api.secret) > 40
    family = [psutil.Process(ui.process.pid), *psutil.Process(ui.process.pid).children(recursive=True)]
    assert not [one for one in family if ui.api.secret.partition(":")[2] in " ".join(one.cmdline())]
    holding = [path for path in root.rglob("*") if path.is_file() and ui.api.secret.encode() in path.read_bytes()]
    assert holding == [root / "ui" / "settings.json"]
    for path, mode in (
        (holding[0], 0o600),
        (root / "ui", 0o700),
        (root / "prefect", 0o700),
        (root / "ui" / "reports.key", 0o600),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


def test_a_run_started_on_a_terminal_appears_in_the_ui(ui):
    run = ui.api.run_of(ui.workspace.flow)
    assert run.page()["state"]["name"] == "Completed"
    assert run.artifacts()["verdict"]["data"]
    assert "sample" in run.artifacts()
    shown = ui.workspace.run(sys.executable, "-m", "flows.ui", "--env").stdout
    assert f"export PREFECT_API_URL={ui.api.url}" in shown
    typed = 'eval "$(python -m flows.ui --env)" && prefect deployment ls'
    assert "pipeline/cpu" in ui.workspace.run("sh", "-c", typed).stdout


def test_a_configured_server_takes_precedence_over_the_ui(ui):
    look = "from tasks.bridge import causes\nwith causes.entry_point('look'): print(causes.PREFECT_API_URL.value())"

    def seen_on(**env: str) -> str:
        return ui.workspace.run(sys.executable, "-c", look, **env).stdout.strip()

    assert seen_on() == ui.api.url
    assert seen_on(PREFECT_API_URL="http://127.0.0.1:1/api") == "http://127.0.0.1:1/api"
    named = ui.workspace.root / "prefect.toml"
    named.write_text('[api]\nurl = "http://127.0.0.1:2/api"\n')
    try:
        assert seen_on() == "http://127.0.0.1:2/api"
    finally:
        named.unlink()


def test_the_workers_and_the_inbox_watcher_have_access(ui):
    until(lambda: workers(ui, "cpu") + workers(ui, "gpu") == ["cpu-here", "gpu-here"], "a worker for each pool")
    photo = ui.workspace.root / "data" / "inbox" / "shed" / "moss" / "1.png"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(next((ui.workspace.root / "photos" / "moss").iterdir()).read_bytes())
    arrived = {"filter": {"event": {"name": ["rootstock.inbox.arrived"]}}}
    until(lambda: ui.api.ask("events/filter", arrived)["total"], "the event of an arrival", 60)
    retraining = {"name": {"any_": ["retrain"]}}
    until(lambda: ui.api.ask("flow_runs/filter", {"flows": retraining}), "a retraining, by the server's own automation")
