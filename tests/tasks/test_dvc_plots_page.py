"""`dvc plots show` draws every plot of dvc.yaml that has data, without a network."""

import json
import re
import shutil
from importlib.metadata import version

import pandas as pd
import pytest
from playwright.sync_api import sync_playwright
from ruamel.yaml import YAML

from tasks.bridge import dvc_plots_page, versions
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


def test_rows_of_the_confusion_matrix_are_actual_classes_as_in_the_report():
    [confusion] = [plot["Confusion"] for plot in PLOTS if "Confusion" in plot]
    assert [*confusion["x"].values(), *confusion["y"].values()] == ["predicted", "actual"]


def test_calibration_is_drawn_beside_the_diagonal(shown):
    page = (shown / "index.html").read_text()
    spec = json.loads(re.search(r"spec = (.*);\n\s+vegaEmbed\('#Calibration'", page).group(1))
    diagonal, curve = spec["layer"]
    assert diagonal["data"]["values"] == [{"confidence": end, "accuracy": end} for end in (0, 1)]
    assert (curve["encoding"]["x"]["field"], curve["encoding"]["y"]["field"]) == ("confidence", "accuracy")


def test_a_page_of_an_earlier_version_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(dvc_plots_page, "_page", lambda: "now")
    page = tmp_path / "plots.html"
    page.write_text(f"<!-- vl-convert-python {version('vl-convert-python')}, Vega-Lite 5.20 -->\nbefore")
    dvc_plots_page.prepare(tmp_path)
    assert page.read_text().endswith("\nnow")
    monkeypatch.setattr(dvc_plots_page, "_page", lambda: "again")
    dvc_plots_page.prepare(tmp_path)
    assert page.read_text().endswith("\nnow")


def test_the_page_is_written_where_it_is_missing(tmp_path):
    (tmp_path / ".dvc").mkdir()
    versions.prepare(tmp_path)
    assert "vegaEmbed=" in (tmp_path / ".dvc" / "plots.html").read_text()


@pytest.mark.ui
@pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium on the path: apt-get install chromium")
def test_a_browser_without_a_network_shows_every_plot_that_has_data(shown):
    asked, errors = [], []
    sources = [next(iter(named.values()))["y"] for named in PLOTS]
    rows = [len(pd.read_csv(shown.parent / path)) for source in sources for path in source]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(BROWSER))
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((shown / "index.html").as_uri())
        page.wait_for_function(f"document.querySelectorAll('{MARKS}').length == {sum(count > 0 for count in rows)}")
        places = len(page.query_selector_all("body > div"))
        drawn = [len(plot.query_selector_all("g.role-mark path")) for plot in page.query_selector_all(MARKS)]
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == [] and errors == []
    assert all(drawn) and len(drawn) == places == len(PLOTS) - 1  # too few images here for a learning curve
