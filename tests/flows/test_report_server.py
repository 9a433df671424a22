"""The server of reports lets a report's own script run, in a sandbox, and no other."""

import pytest
from playwright.sync_api import expect, sync_playwright

from flows.ui import reports
from rootstock.evaluation.report import render
from tests.browser import BROWSER, CHROMIUM
from tests.rootstock.evaluation.test_report import report
from tests.serving import free_port

pytestmark = [pytest.mark.ui, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]
KEY = "k" * 24


def test_a_report_sorts_where_it_is_served_and_runs_no_other_script(tmp_path):
    page_of_a_run = render(report())
    (tmp_path / "mine.html").write_text(page_of_a_run)
    (tmp_path / "attacked.html").write_text(
        page_of_a_run.replace("</h1>", "</h1><script>document.title = 'attacked'</script>")
    )
    port = free_port()
    with reports.serving("127.0.0.1", port, tmp_path, KEY), sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=[*BROWSER])
        page, said = browser.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"http://127.0.0.1:{port}/{KEY}/mine.html")
        page.locator("#classes").get_by_role("button", name="Class").click()
        expect(page.locator("#classes th[aria-sort=ascending]")).to_have_text("Class")
        assert said == [] and page.evaluate("origin") == "null"
        page.goto(f"http://127.0.0.1:{port}/{KEY}/attacked.html")
        expect(page.locator("#classes").get_by_role("button", name="Class")).to_be_visible()
        assert page.title() != "attacked" and any("Content Security Policy" in text for text in said)
        browser.close()
