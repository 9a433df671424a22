"""`make ui` in a browser: a person without a terminal trains, reads the verdict, and cancels.

    python -m pytest -m ui tests/flows/test_browser.py
    ROOTSTOCK_PICTURES=1 python -m pytest -m ui tests/flows/test_browser.py    # docs/pictures/ui-*.png anew

The tests go on from one another, in order. Names and places of what is clicked are Prefect 3.8's (its V2 pages, which
are what a new browser is shown).
"""

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from playwright.sync_api import FloatRect, Locator, Page, expect, sync_playwright

from rootstock.config.params_file import load
from tests.flows.test_repro_and_flow import STAGES
from tests.serving import FINAL, Api, free_port, process, until
from tests.workspace import ROOT, Workspace, make_workspace

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.ui,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium on the path: apt-get install chromium"),
]
BROWSER = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
SAMPLE = {
    "ingest": {"sources": [{"path": "sample:digits", "domain": "handwritten"}], "split": {"val": 0.15, "test": 0.15}},
    "backbone": {"name": "shufflenet_v2_x0_5", "weights": "random", "image_size": 32, "crop_fraction": 1.0},
    "head": {"l2": [3.0]},
    "finetune": {
        "stages": [
            {"unfreeze": "last_block", "epochs": 1, "lr": 0.0003},
            {"unfreeze": "all", "epochs": 2, "lr": 0.0005},
        ]
    },
}
IMAGES = 1797
PAGE_S, SETTLED_S, ANSWER_S, START_S, RUN_S, CANCELLED_S = 20, 2, 8, 60, 300, 10
# Prefect's pages ask for a second press at times: the first one after a refusal only takes the red words away, and
# where SQLite is busy the server answers 503, which the page calls "Unknown error while creating flow run."
TRIES = 5
WIDTH, HEIGHT, MARGIN = 1400, 900, 16  # pixels
PICTURE_BYTES = 300_000
NOWHERE = "ingest.sources: nowhere does not exist. Expected a folder, an archive or a manifest."


@dataclass
class Visit:
    """A person in front of the UI: what is on the page, and what was started."""

    page: Page
    address: str  # that `make ui` prints
    api: Api
    workspace: Workspace
    server: Any  # the process that `make ui` starts
    pictures: Path
    runs: list[str] = field(default_factory=list)  # names, the latest last

    @property
    def run(self) -> str:
        """Name the run that was started last."""
        return self.runs[-1]

    @property
    def state(self) -> Locator:
        """Find the state of the run whose page is open."""
        return self.page.locator("nav[data-slot=breadcrumb] + div > [data-slot=badge]").first

    @property
    def tab(self) -> Locator:
        """Find what the open tab shows."""
        return self.page.get_by_role("tabpanel")

    def arrive(self) -> None:
        """Open the address that `make ui` prints."""
        self.page.goto(self.address)
        expect(self.page).to_have_url(re.compile(r"/dashboard\?"))  # where the redirects end

    def open_deployment(self) -> None:
        """Go to the deployment from anywhere."""
        self.page.get_by_role("link", name="Deployments").first.click()
        self.page.get_by_role("row", name="pipeline").get_by_role("link", name="cpu", exact=True).click()

    def open_form(self, path: str = "sample:digits") -> None:
        """Run -> Custom run, and wait until the form is filled in."""
        self.open_deployment()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Custom run").click()
        expect(self.page.get_by_label("Path", exact=True)).to_have_value(path)

    def start(self, press: Callable[[], None]) -> None:
        """Press what starts a run, once more where nothing came of it, and open the run's page."""
        started = self.page.get_by_text("scheduled to start now")
        for _ in range(TRIES):
            press()
            with suppress(AssertionError):
                expect(started).to_be_visible(timeout=ANSWER_S * 1000)
                break
        expect(started).to_be_visible()
        self.page.get_by_role("link", name="View run").click()
        expect(self.state).to_be_visible()
        self.runs.append(self.page.locator("[data-slot=breadcrumb-page]").first.inner_text())

    def submit(self) -> None:
        """Submit the form."""
        self.start(self.page.get_by_role("button", name="Submit").click)

    def quick_run(self) -> None:
        """Run -> Quick run, on the deployment's page."""
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Quick run").click()

    def open_run(self) -> None:
        """Go to the last run from one of its artifacts."""
        self.page.get_by_role("link", name=self.run, exact=True).click()

    def open_tab(self, name: str) -> None:
        """Open a tab of a run's page, as it is now."""
        self.page.get_by_role("tab", name=name).click()
        self.page.reload()
        expect(self.page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")

    def reloaded_state(self) -> str:
        """Look at the open run's state as it is now; the page itself asks for it every 5 seconds only."""
        self.page.reload()
        expect(self.state).to_be_visible()
        return self.state.inner_text()

    def ends_as(self, state: str, seconds: float = RUN_S) -> None:
        """Wait until the open run has ended, and look how."""
        expect(self.state).to_have_text(re.compile("|".join(FINAL), re.IGNORECASE), timeout=seconds * 1000)
        expect(self.state).to_have_text(state)

    def stage(self, name: str) -> Locator:
        """Find a stage's card among the task runs; one that has not begun has a few more characters to its name."""
        link = self.page.get_by_role("link", name=re.compile(f"^{name}(-...)?$"))
        return self.tab.locator("[data-slot=card]").filter(has=link)

    def training(self) -> Locator:
        """Find the progress of fine-tuning on the tab of artifacts, once there is some."""
        return self.tab.get_by_text(re.compile(r"^fine_tune: [1-9][\d,]* of [\d,]+ images, [\d.]+ images/s"))

    def open_artifact(self, key: str) -> None:
        """Open what the last run shows under a name: its card leads to all runs' artifacts of that name."""
        self.open_tab("Artifacts")
        self.tab.get_by_role("link", name=key).click()
        own = self.page.locator("[data-slot=card]").filter(has=self.page.get_by_role("link", name=self.run, exact=True))
        own.get_by_role("link").first.click()
        expect(self.page.get_by_role("link", name=self.run, exact=True)).to_be_visible()

    def sees(self, what: Callable[[], Locator], seconds: float = RUN_S) -> None:
        """Wait for something on the open tab, which the page itself asks for anew every 30 seconds only."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.page.reload()
            with suppress(AssertionError):
                expect(what().first).to_be_visible(timeout=3000)
                return
        expect(what().first).to_be_visible()

    def reads_in_log(self, *texts: str) -> None:
        """Read the open log from its start until each text was seen in turn: a page draws only what is in sight."""
        log = self.page.get_by_role("log")
        log.evaluate("log => log.scrollTo(0, 0)")
        for text in texts:
            until(lambda text=text: text in log.inner_text() or self._scrolls(log), text, PAGE_S)

    def _scrolls(self, log: Locator) -> bool:
        """Go on by half of what is in sight, without losing a line; says that nothing has been found by that."""
        log.evaluate("log => log.scrollBy(0, log.clientHeight / 2)")
        return False

    def part(self, first: Locator, last: Locator) -> FloatRect:
        """Return the part of the page from one thing on it to another further down, whatever is scrolled to."""
        scrolled = self.page.evaluate("window.scrollY")
        top, bottom = first.bounding_box(), last.bounding_box()
        x, y = top["x"] - MARGIN, top["y"] + scrolled - MARGIN
        end = bottom["y"] + scrolled + bottom["height"] + MARGIN / 4  # before anything below it begins
        return {"x": x, "y": y, "width": WIDTH - x, "height": end - y}

    def started(self) -> list[str]:
        """Ask the server which runs there are."""
        return [run.page()["name"] for run in self.api.runs()]

    def picture(self, name: str, clip: FloatRect | None = None) -> None:
        """Keep a picture of the page."""
        path = self.pictures / f"ui-{name}.png"
        self.page.screenshot(path=path, full_page=clip is not None, clip=clip, animations="disabled")
        if path.stat().st_size > PICTURE_BYTES:
            Image.open(path).quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


@pytest.fixture(scope="module")
def visit(tmp_path_factory) -> Iterator[Visit]:
    """A browser at the UI of a workspace in which nothing has run, started as `make ui` does."""
    folder = tmp_path_factory.mktemp("browser")
    workspace = make_workspace(folder / "workspace", folder / "unused")
    workspace.set(**SAMPLE)
    workspace.run("git", "commit", "-qam", "the sample")
    env = {name: value for name, value in workspace.env.items() if name != "PREFECT_HOME"}
    port, log = free_port(), folder / "ui.log"
    pictures = ROOT / "docs" / "pictures" if "ROOTSTOCK_PICTURES" in os.environ else folder
    expect.set_options(timeout=PAGE_S * 1000)
    command = [sys.executable, "-m", "flows.ui", "--port", str(port)]
    with process(command, env, workspace.root, log) as server, sync_playwright() as playwright:

        def printed_its_address() -> bool:
            assert server.poll() is None, log.read_text()
            return "Ctrl-C stops it" in log.read_text()

        until(printed_its_address, "the UI's address", 150)
        [address] = re.findall(r"http://127.0.0.1:\d+/enter#(?:\S+)", log.read_text())
        api = Api(f"http://127.0.0.1:{port}/api", address.partition("#")[2])
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PAGE_S * 1000)
        yield Visit(page, address, api, workspace, server, pictures)
        browser.close()


def learning_rate(page: Page) -> Locator:
    """Find the learning rate of the second stage of fine-tuning."""
    return page.get_by_label("Learning rate", exact=True).nth(1)


def size_of_loaded(picture: Locator) -> tuple[int, int]:
    """Return the size of a picture in pixels; one that cannot be decoded is an error."""
    picture.evaluate("image => image.decode()")
    width, height = picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    return width, height


def test_the_address_leads_to_a_deployment_that_says_what_it_does(visit):
    page = visit.page
    visit.arrive()
    page.get_by_role("link", name="Deployments").first.click()
    expect(page.get_by_role("row", name="pipeline")).to_contain_text("Ready")
    expect(page.get_by_role("row", name="fine-tune")).to_contain_text("Ready")
    visit.picture("deployments")
    visit.open_deployment()
    page.get_by_role("tab", name="Description").click()
    expect(visit.tab).to_contain_text("Images in, a tested and versioned classifier out.")


def test_the_form_explains_its_fields_and_refuses_an_impossible_value_by_name(visit):
    page = visit.page
    visit.open_form()
    for explained in (
        "Which images are ingested, and how they are checked, split and packed into shards.",
        "The pretrained network, kept frozen as a feature extractor.",
        "Architecture: a torchvision name, lenet5, plain34, efficientnet_lite0, or timm/<name>.",
        "Unfreezes later layers in stages, starting from the linear head's weights.",
    ):
        expect(page.get_by_text(explained)).to_be_visible()
    expect(page.get_by_text("Peak learning rate of the one-cycle schedule.")).to_have_count(2)

    name, weights = page.get_by_label("Select Name"), page.get_by_label("Weights (Optional)")
    expect(name).to_have_text("shufflenet_v2_x0_5")
    name.click()
    page.keyboard.type("efficientnet_l")
    expect(page.get_by_role("option")).to_have_text(["efficientnet_lite0"])
    page.get_by_role("option").click()
    expect(weights).to_have_value("random")
    weights.fill("pretrained")
    page.locator("label", has_text="Image Size").locator("xpath=following::input[1]").fill("96")
    learning_rate(page).fill("7")

    page.get_by_role("button", name="Submit").click()
    expect(
        page.get_by_text("Validation failed for field 'finetune.stages[1].lr'. Failure reason: 7 is")
    ).to_be_visible()
    learning_rate(page).scroll_into_view_if_needed()
    expect(page.get_by_text("7 is greater than or equal to the maximum of 1", exact=True)).to_be_visible()
    visit.picture("refused")
    expect(name).to_have_text("efficientnet_lite0")  # nothing that was typed is lost
    assert not visit.started()


def test_the_stages_of_the_corrected_run_go_by_until_it_is_completed(visit):
    page = visit.page
    learning_rate(page).fill("0.0006")
    visit.picture("form", visit.part(page.locator("label", has_text="backbone"), learning_rate(page)))
    visit.submit()
    expect(visit.state).to_have_text("Running", timeout=START_S * 1000)
    expect(page.locator("canvas")).to_be_visible()  # the graph
    visit.open_tab("Task Runs")
    for stage in STAGES:
        expect(visit.stage(stage)).to_have_count(1)
    for stage in STAGES[:-2]:
        visit.sees(lambda stage=stage: visit.stage(stage).get_by_text("Completed"))
    visit.sees(lambda: visit.stage("fine_tune").get_by_text("Running"))
    expect(visit.stage("evaluate")).to_contain_text("Pending")
    visit.picture("run")

    visit.open_tab("Artifacts")
    expect(visit.tab).to_contain_text(re.compile(rf"extract: {IMAGES:,} of {IMAGES:,} images, [\d.]+ images/s"))
    visit.sees(visit.training)
    done, total = re.search(r"fine_tune: ([\d,]+) of ([\d,]+) images", visit.tab.inner_text()).groups()
    assert int(done.replace(",", "")) < int(total.replace(",", ""))

    visit.ends_as("Completed")
    visit.open_tab("Logs")
    visit.reads_in_log(
        'params.yaml: backbone.name was "shufflenet_v2_x0_5", is "efficientnet_lite0"',
        f"ingest: {IMAGES} new of {IMAGES} images",
        f"Kept as experiment {visit.run}",
    )
    visit.open_tab("Task Runs")
    expect(visit.tab).to_contain_text("6 Completed")


def test_the_verdict_says_which_model_won_and_leads_to_the_report(visit):
    page = visit.page
    visit.open_artifact("sample")
    expect(visit.tab.locator("p").first).to_have_text(f"A sample of {IMAGES:,} images, with their labels")
    assert min(size_of_loaded(visit.tab.get_by_role("img"))) > 100

    visit.open_run()
    visit.open_artifact("verdict")
    report = visit.workspace.root / "data" / "report"
    metrics, test = (json.loads((report / name).read_text()) for name in ("metrics.json", "test.json"))
    measured = f"{test['accuracy']['value']:.1%}"
    won = {"head": "The head on frozen features won", "finetuned": "The fine-tuned network won"}[metrics["winner"]]
    expect(visit.tab.get_by_role("heading", level=2)).to_have_text(f"{measured} test accuracy")
    expect(visit.tab).to_contain_text(f"{won}: ")
    for model, called in (("head", "Head on frozen features"), ("finetuned", "Fine-tuned")):
        expect(visit.tab.get_by_role("row", name=called)).to_contain_text(f"{metrics[model]:.1%}")
    assert metrics["accuracy"] > 0.9
    expect(visit.tab).to_contain_text(f"Kept as experiment {visit.run}")
    assert visit.run in visit.workspace.run("dvc", "exp", "list", "--name-only").stdout.split()
    curves = visit.tab.get_by_role("img", name="Loss and validation accuracy")
    confusion = visit.tab.get_by_role("img", name="confusion matrix")
    assert min(size_of_loaded(curves) + size_of_loaded(confusion)) > 100
    visit.picture("verdict", visit.part(page.locator("nav[data-slot=breadcrumb]"), confusion))

    visit.tab.get_by_role("link", name="The report of this run").click()
    expect(page).to_have_url(re.compile(rf"http://127.0.0.1:\d+/[\w-]+/{visit.run}\.html"))
    expect(page.get_by_role("heading", level=1)).to_contain_text("efficientnet_lite0")
    expect(page.locator("body")).to_contain_text(measured)


def test_started_again_unchanged_every_stage_is_cached(visit):
    visit.arrive()
    visit.open_deployment()
    visit.start(visit.quick_run)
    visit.ends_as("Completed", START_S)
    visit.open_tab("Task Runs")
    for stage in STAGES:
        expect(visit.stage(stage).locator("[data-slot=badge]")).to_have_text("Cached")
    expect(visit.tab).to_contain_text("6 Cached")
    visit.picture("cached")


def test_a_schedule_whose_fields_nobody_touched_runs_with_params_yaml_as_it_is(visit):
    visit.arrive()
    visit.open_deployment()
    visit.page.get_by_role("button", name=re.compile("Schedule")).first.click()  # with a capital, unlike others
    expect(visit.page.get_by_text('Property is type "None"').first).to_be_visible()
    visit.page.wait_for_timeout(SETTLED_S * 1000)  # its fields fill in one after the other, and nothing says when
    visit.page.get_by_role("button", name="Save").click()

    def schedules() -> list[dict[str, Any]]:
        return visit.api.ask("deployments/name/pipeline/cpu")["schedules"]

    [made] = until(schedules, "the schedule", PAGE_S)
    found = visit.api.ask("deployments/name/pipeline/cpu")["id"]
    visit.api.ask(f"deployments/{found}/schedules/{made['id']}", method="DELETE")  # it would run every hour
    assert made["parameters"]["backbone"]["image_size"] is None  # what the page sends for a field nobody touched
    path = visit.workspace.root / "params.yaml"
    before = path.read_bytes()
    run = visit.api.start(**made["parameters"])
    assert run.ended(START_S)["name"] == "Completed"
    assert any(
        "backbone.image_size: null was given and ignored, 96 of params.yaml stays" in line for line in run.logs()
    )
    assert set(run.stages().values()) == {"Cached"}
    assert path.read_bytes() == before


def test_a_source_that_is_not_there_fails_with_a_persons_message(visit):
    page = visit.page
    visit.open_form()
    expect(page.get_by_label("Select Name")).to_have_text("efficientnet_lite0")  # the form starts from the last run
    page.get_by_label("Path", exact=True).fill("nowhere")
    visit.submit()
    visit.ends_as("Failed", START_S)
    visit.open_tab("Details")
    expect(visit.tab).to_contain_text(NOWHERE)
    visit.open_tab("Logs")
    page.get_by_role("combobox", name="log level filter").click()
    page.get_by_role("option", name="Error and above").click()
    entries = page.get_by_role("log").get_by_role("listitem")
    expect(entries.first).to_contain_text(NOWHERE)
    visit.picture("failed")


def test_the_logs_of_a_failed_run_show_no_stack(visit):
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="Download logs").click()
    log = download.value.path().read_text()
    assert "nowhere does not exist" in log
    assert "Traceback" not in log


def test_a_long_run_is_cancelled_within_ten_seconds_and_leaves_everything_in_order(visit):
    page, workspace = visit.page, visit.workspace
    visit.open_form()  # the values of the last run, which failed, were undone
    page.get_by_label("Epochs", exact=True).nth(1).fill("50")
    visit.submit()
    visit.open_tab("Artifacts")
    visit.sees(visit.training)
    page.get_by_role("button", name="Open menu").first.click()
    page.get_by_role("menuitem", name="Cancel").click()
    page.get_by_role("button", name="Cancel Flow Run").click()
    clicked = time.monotonic()
    expect(visit.state).to_have_text(re.compile("Cancelling|Cancelled"))
    until(lambda: visit.reloaded_state() == "Cancelled", "Cancelled", 3 * CANCELLED_S)
    seconds = time.monotonic() - clicked
    print(f"Cancelled {seconds:.1f} s after the click")
    assert workspace.status().keys() == {"ingest"}  # the run's values were undone, and its stages restored
    assert load(workspace.root / "params.yaml").finetune.stages[1].epochs == 2
    workspace.run(
        sys.executable, "-c", "from tasks.bridge.workspace import writing\nwith writing(): pass"
    )  # nobody else is
    assert seconds <= CANCELLED_S


def test_ctrl_c_ends_everything_that_was_started(visit):
    root = visit.workspace.root
    family = psutil.Process(visit.server.pid).children(recursive=True)
    assert len(family) >= 3  # the server and two workers
    visit.server.send_signal(signal.SIGINT)
    assert visit.server.wait(60) == 0
    _, left = psutil.wait_procs(family, timeout=5)
    assert not left
    assert not [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(root)]
