"""`dvc plots show` draws every plot of dvc.yaml without a network."""

import shutil

import pandas as pd
import pytest
from playwright.sync_api import sync_playwright
from ruamel.yaml import YAML

from tasks.bridge import versions
from tests.browser import BROWSER, CHROMIUM
from tests.workspace import ROOT

PLOTS = YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"]
MARKS = "svg.marks"


@pytest.fixture
def shown(after_flow):
    """The folder of the page that `dvc plots show` has written."""
    after_flow.run("dvc", "plots", "show")
    return after_flow.root / "dvc_plots"


def test_the_page_loads_nothing_and_its_template_is_configured_only_on_this_machine(shown):
    page = (shown / "index.html").read_text()
    assert "vegaEmbed=" in page and page.count("vegaEmbed('#") == len(PLOTS)
    assert "<script src" not in page and "cdn." not in page.split("</script>", 1)[0][-5000:]
    workspace = shown.parent
    assert "html_template" in (workspace / ".dvc" / "config.local").read_text()
    assert shutil.which("git") and not (workspace / ".dvc" / "config").read_text().count("html_template")


def test_the_page_is_written_where_it_is_missing(tmp_path):
    (tmp_path / ".dvc").mkdir()
    versions.prepare(tmp_path)
    assert "vegaEmbed=" in (tmp_path / ".dvc" / "plots.html").read_text()


@pytest.mark.ui
@pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium on the path: apt-get install chromium")
def test_a_browser_without_a_network_shows_every_plot(shown):
    asked, errors = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(BROWSER))
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((shown / "index.html").as_uri())
        page.wait_for_function(f"document.querySelectorAll('{MARKS}').length == {len(PLOTS)}")
        drawn = [len(plot.query_selector_all("g.role-mark path")) for plot in page.query_selector_all(MARKS)]
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == [] and errors == []
    sources = [next(iter(named.values()))["y"] for named in PLOTS]
    rows = [len(pd.read_csv(shown.parent / path)) for source in sources for path in source]
    assert [count > 0 for count in drawn] == [count > 0 for count in rows]  # too few images here for a learning curve
    assert sum(count > 0 for count in drawn) >= len(PLOTS) - 1
