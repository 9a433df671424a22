"""A person in front of the UI in a browser.

Names and places of what is clicked are Prefect 3.8's (its V2 pages, which are what a new browser is shown).
"""

import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import FloatRect, Locator, Page, expect

from tests.serving import FINAL, Api, until
from tests.workspace import Workspace

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
PAGE_S, SETTLED_S, ANSWER_S, START_S, RUN_S, CANCELLED_S = 20, 2, 8, 60, 300, 10
# Prefect's pages ask for a second press at times: the first one after a refusal only takes the red words away, and
# where SQLite is busy the server answers 503, which the page calls "Unknown error while creating flow run."
TRIES = 5
WIDTH, HEIGHT, MARGIN = 1400, 900, 16  # pixels
PICTURE_BYTES = 300_000


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
        """Wait for something on the open tab, which the page itself refreshes only every 30 seconds."""
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
