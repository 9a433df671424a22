"""`make ui` in a browser: a person without a terminal trains, reads the verdict, and cancels.

    python -m pytest -m ui tests/flows/test_browser.py
    ROOTSTOCK_PICTURES=1 python -m pytest -m ui tests/flows/test_browser.py    # renews docs/pictures/ui-*.png

The tests go on from one another, in order.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from rootstock.config.params_file import load
from rootstock.evaluation import figures
from tests.browser import BROWSER, CANCELLED_S, CHROMIUM, HEIGHT, PAGE_S, SETTLED_S, START_S, WIDTH, Visit
from tests.flows.test_repro_and_flow import STAGES
from tests.serving import Api, free_port, process, until
from tests.workspace import ROOT, make_workspace

pytestmark = [
    pytest.mark.ui,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium on the path: apt-get install chromium"),
]
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
NOWHERE = "ingest.sources: nowhere does not exist. Expected a folder, an archive or a manifest."


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


def in_second_stage(page: Page, title: str) -> Locator:
    """Find the number in a field of the second stage of fine-tuning; the label is not tied to it."""
    return page.locator("label", has_text=re.compile(f"^{title}$")).nth(1).locator("xpath=following::input[1]")


def learning_rate(page: Page) -> Locator:
    """Find the learning rate of the second stage of fine-tuning."""
    return in_second_stage(page, "Learning rate")


def size_of_loaded(picture: Locator) -> tuple[int, int]:
    """Return the size of a picture in pixels; one that cannot be decoded is an error."""
    picture.evaluate("image => image.decode()")
    width, height = picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    return width, height


def test_the_printed_address_opens_the_ui_with_a_described_deployment(visit):
    page = visit.page
    visit.arrive()
    page.get_by_role("link", name="Deployments").first.click()
    expect(page.get_by_role("row", name="pipeline")).to_contain_text("Ready")
    expect(page.get_by_role("row", name="fine-tune")).to_contain_text("Ready")
    visit.picture("deployments")
    visit.open_deployment()
    page.get_by_role("tab", name="Description").click()
    expect(visit.tab).to_contain_text("Images in, a tested and versioned classifier out.")


def test_the_form_explains_its_fields_and_refuses_an_invalid_value_by_name(visit):
    page = visit.page
    visit.open_form()
    for explained in (
        "Which images are ingested, and how they are checked, split and packed into shards.",
        "The pretrained network, kept frozen as a feature extractor.",
        "Architecture: a torchvision name, lenet5, plain34, efficientnet_lite0, or timm/<name>.",
        "Unfreezes later layers in stages, starting from the linear head's weights.",
    ):
        expect(page.get_by_text(explained)).to_be_visible()
    expect(page.get_by_text("Peak learning rate of the one-cycle schedule, or auto")).to_have_count(2)

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
    expect(page.get_by_text("7 is not valid under any of the given schemas", exact=True)).to_be_visible()
    visit.picture("refused")
    expect(name).to_have_text("efficientnet_lite0")  # nothing that was typed is lost
    assert not visit.started()


def test_the_corrected_run_shows_its_stages_until_it_is_completed(visit):
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
        f"ingest: {IMAGES:,} new of {IMAGES:,} images",
        f"Kept as experiment {visit.run}",
    )
    visit.open_tab("Task Runs")
    expect(visit.tab).to_contain_text("6 Completed")


def test_the_verdict_names_the_winner_and_links_to_the_report(visit):
    page = visit.page
    visit.open_artifact("sample")
    expect(visit.tab.locator("p").first).to_have_text(f"A sample of {IMAGES:,} images, with their labels")
    assert min(size_of_loaded(visit.tab.get_by_role("img"))) > 100

    visit.open_run()
    visit.open_artifact("verdict")
    report = visit.workspace.root / "data" / "report"
    validation, test = (json.loads((report / name).read_text()) for name in ("validation.json", "test.json"))
    measured = figures.percent(test["accuracy"]["value"])
    won = {"head": "The head on frozen features won", "finetuned": "The fine-tuned network won"}[test["winner"]]
    expect(visit.tab.get_by_role("heading", level=2)).to_have_text(f"{measured} test accuracy")
    expect(visit.tab).to_contain_text(f"{won}: ")
    accuracies = {model: own["accuracy"]["value"] for model, own in validation.items()}
    for model, called in (("head", "Head on frozen features"), ("finetuned", "Fine-tuned")):
        expect(visit.tab.get_by_role("row", name=called)).to_contain_text(figures.percent(accuracies[model]))
    assert accuracies[test["winner"]] > 0.9
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


def test_every_stage_of_an_unchanged_second_run_is_cached(visit):
    visit.arrive()
    visit.open_deployment()
    visit.start(visit.quick_run)
    visit.ends_as("Completed", START_S)
    visit.open_tab("Task Runs")
    for stage in STAGES:
        expect(visit.stage(stage).locator("[data-slot=badge]")).to_have_text("Cached")
    expect(visit.tab).to_contain_text("6 Cached")
    visit.picture("cached")


def test_a_schedule_with_untouched_fields_runs_with_params_yaml_unchanged(visit):
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


def test_a_missing_source_fails_the_run_with_a_readable_message(visit):
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


def test_the_logs_of_a_failed_run_contain_no_traceback(visit):
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="Download logs").click()
    log = download.value.path().read_text()
    assert "nowhere does not exist" in log
    assert "Traceback" not in log


def test_a_long_run_is_cancelled_within_ten_seconds_and_its_values_are_undone(visit):
    page, workspace = visit.page, visit.workspace
    visit.open_form()  # the values of the last run, which failed, were undone
    in_second_stage(page, "Epochs").fill("50")
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


def test_ctrl_c_ends_every_process_that_was_started(visit):
    root = visit.workspace.root
    family = psutil.Process(visit.server.pid).children(recursive=True)
    assert len(family) >= 3  # the server and two workers
    visit.server.send_signal(signal.SIGINT)
    assert visit.server.wait(60) == 0
    _, left = psutil.wait_procs(family, timeout=5)
    assert not left
    assert not [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(root)]
