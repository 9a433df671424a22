"""`make ui` in a browser that has other pages open: they neither read nor start anything.

python -m pytest -m ui tests/flows/test_browser_access.py
"""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser import BROWSER, CHROMIUM, PAGE_S
from tests.started_ui import Ui, started

pytestmark = [
    pytest.mark.ui,
    pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium on the path: apt-get install chromium"),
]
REBOUND = "rebound.example"  # a name that leads to 127.0.0.1
OWN_PAGE = "Deployments"

# What a page of another site can try without anybody's help; each says what it got.
TRIES = """
async (target) => {
  const got = {};
  const attempt = async (name, act) => {
    try { got[name] = String(await act()); } catch (error) { got[name] = `refused: ${error}`; }
  };
  const body = JSON.stringify({parameters: {}, state: {type: "SCHEDULED"}});
  const asked = `${target.api}/deployments/${target.deployment}/create_flow_run`;
  const json = {"Content-Type": "application/json"};
  const filter = `${target.api}/deployments/filter`;
  await attempt("read", async () => (await fetch(filter, {method: "POST", headers: json, body: "{}"})).status);
  await attempt("health", async () => (await fetch(`${target.api}/health`)).text());
  await attempt("report", async () => (await fetch(target.report)).text());
  await attempt("report opaque", async () => (await (await fetch(target.report, {mode: "no-cors"})).text()) || "empty");
  await attempt("start", async () => (await fetch(asked, {method: "POST", headers: json, body})).status);
  for (const type of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]) {
    await attempt(`simple ${type}`, async () =>
      (await fetch(asked, {method: "POST", mode: "no-cors", headers: {"Content-Type": type}, body})).type);
  }
  const untyped = {method: "POST", mode: "no-cors", body: new Blob([body])};
  await attempt("no type", async () => (await fetch(asked, untyped)).type);
  await attempt("credentials", async () =>
    (await fetch(asked, {method: "POST", mode: "no-cors", credentials: "include", body})).type);
  await attempt("beacon", () => navigator.sendBeacon(asked, body));
  for (const path of ["events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled"]) {
    await attempt(`socket ${path}`, () => new Promise((resolve, reject) => {
      const socket = new WebSocket(`${target.api.replace("http", "ws")}/${path}`, ["prefect"]);
      socket.onopen = () => { socket.send(JSON.stringify({type: "auth", token: ""})); };
      socket.onmessage = message => resolve(`got ${message.data}`);
      socket.onclose = closed => reject(`closed ${closed.code}`);
    }));
  }
  await attempt("frame", () => new Promise((resolve, reject) => {
    const frame = document.createElement("iframe");
    frame.onload = () => { try { resolve(frame.contentDocument.body.innerText); } catch (error) { reject(error); } };
    frame.src = target.ui;
    document.body.append(frame);
  }));
  for (const [kind, enctype] of [["form", "application/x-www-form-urlencoded"], ["text form", "text/plain"]]) {
    await attempt(kind, () => new Promise(resolve => {
      const form = document.createElement("form");
      Object.assign(form, {method: "POST", action: asked, enctype, target: "_blank"});
      const field = document.createElement("input");
      Object.assign(field, {name: body.slice(0, -1) + ', "ignored": "', value: '"}'});
      form.append(field);
      document.body.append(form);
      form.submit();
      setTimeout(() => resolve("sent"), 500);
    }));
  }
  return got;
}
"""


@pytest.fixture(scope="module")
def ui(flow_ran_in, tmp_path_factory) -> Iterator[Ui]:
    """The UI of a workspace in which the flow has run."""
    with started(flow_ran_in.copy(tmp_path_factory.mktemp("browser-access") / "workspace")) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for which a site of a stranger leads to this machine."""
    with sync_playwright() as playwright:
        lead = [f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[one for one in BROWSER if "resolver" not in one] + lead
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """Another web site: a page, and its port."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title><body>elsewhere</body>")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, args=(0.05,), daemon=True).start()
        yield site.server_port
        site.shutdown()


def target(ui: Ui, host: str = "127.0.0.1") -> dict[str, str]:
    """Return what a page of another site requests: it knows everything but the secret."""
    report = ui.workspace.root / ".rootstock" / "reports" / "mine.html"
    report.write_text("<html>mine</html>")
    settings = json.loads((ui.workspace.root / ".rootstock" / "ui" / "settings.json").read_text())
    key = urlsplit(settings["ROOTSTOCK_REPORTS_URL"]).path
    return {
        "api": f"http://{host}:{ui.port}/api",
        "ui": f"http://{host}:{ui.port}/v2/dashboard",
        "report": f"http://{host}:{ui.port + 1}{key}/mine.html",
        "deployment": ui.api.ask("deployments/name/pipeline/cpu")["id"],
    }


def let_in(browser: Browser, ui: Ui) -> Page:
    """Open the printed address in a browser of its own."""
    page = browser.new_context().new_page()
    page.set_default_timeout(PAGE_S * 1000)
    page.goto(next(word for word in ui.printed.split() if "/enter#" in word))
    expect(page.get_by_role("link", name=OWN_PAGE).first).to_be_visible(timeout=PAGE_S * 1000)
    return page


@pytest.mark.parametrize("site", ["127.0.0.1", "localhost", REBOUND])
def test_a_page_of_another_site_can_neither_read_nor_start_anything(ui, browser, elsewhere, site):
    page = let_in(browser, ui).context.new_page()  # the same browser, in which somebody is let in
    before = len(ui.api.runs())
    page.goto(f"http://{site}:{elsewhere}/")
    got = page.evaluate(TRIES, target(ui))
    assert [
        what for what in ("read", "health", "report", "start", "frame") if not got[what].startswith("refused")
    ] == []
    assert [what for what, said in got.items() if what.startswith("socket") and not said.startswith("refused")] == []
    assert got["report opaque"] in ("empty", "refused: TypeError: Failed to fetch")
    page.wait_for_timeout(1500)
    assert len(ui.api.runs()) == before


def test_a_site_whose_name_resolves_to_this_machine_can_read_nothing(ui, browser):
    """DNS rebinding: to the browser, page and server are of one origin, and it has no reason to hinder anything."""
    page = browser.new_context().new_page()
    before = len(ui.api.runs())
    for port in (ui.port, ui.port + 1):
        answer = page.goto(f"http://{REBOUND}:{port}/")
        assert answer.status in (400, 403)
        got = page.evaluate(TRIES, target(ui, REBOUND))
        assert "mine" not in json.dumps(got)
        assert got["read"] in ("400", "refused: TypeError: Failed to fetch")
        assert got["start"] in ("400", "refused: TypeError: Failed to fetch")
        assert not [what for what, said in got.items() if what.startswith("socket") and not said.startswith("refused")]
    assert len(ui.api.runs()) == before


def test_the_printed_address_grants_access_and_leaves_no_secret_in_the_address_bar(ui, browser):
    page = let_in(browser, ui)
    assert ui.api.secret not in page.url
    page.go_back()
    assert ui.api.secret not in page.url
    page.goto(f"http://localhost:{ui.port}/")  # the same by its other name
    expect(page).to_have_url(re.compile(rf"^http://127\.0\.0\.1:{ui.port}/"))
    expect(page.get_by_role("link", name=OWN_PAGE).first).to_be_visible()


def test_a_browser_without_the_secret_is_asked_for_it_and_a_wrong_one_does_not_replace_the_right_one(ui, browser):
    page = browser.new_context().new_page()
    page.set_default_timeout(PAGE_S * 1000)
    page.goto(f"http://127.0.0.1:{ui.port}/")
    page.locator("input[type=password], input").first.fill(ui.api.secret)
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name=OWN_PAGE).first).to_be_visible(timeout=PAGE_S * 1000)
    page.goto(f"http://127.0.0.1:{ui.port}/enter#rootstock:wrong")
    expect(page.get_by_role("link", name=OWN_PAGE).first).to_be_visible(timeout=PAGE_S * 1000)


def test_a_report_opens_from_its_link_with_its_plots(ui, browser):
    published = ui.workspace.root / ".rootstock" / "reports" / "whole.html"
    published.write_bytes(Path(ui.workspace.root / "data" / "report" / "report.html").read_bytes())
    page = browser.new_context().new_page()
    page.goto(target(ui)["report"].replace("mine.html", "whole.html"))
    expect(page.locator("h1").first).to_be_visible()
    assert page.locator("img").count() > 0
