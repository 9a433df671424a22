"""The report in Chromium: no error, no serious finding of axe, and it sorts, filters and fits without a network."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from rootstock.evaluation.advice import Advice
from rootstock.evaluation.embedding import Embedding
from rootstock.evaluation.mistakes import Confusion
from rootstock.evaluation.report import Report, render
from rootstock.evaluation.why import Evidence, Level, Why
from tests.browser import BROWSER, CHROMIUM
from tests.rootstock.evaluation.test_report import picture, report
from tests.shapes_dataset import shapes_evaluated

pytestmark = [pytest.mark.ui, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
LIMIT_BYTES = 5 * 10**6
POINTS = 600


def noise(side: int, kind: str = "WEBP", quality: int = 75) -> bytes:
    """A picture that does not compress: the largest that its size can be."""
    drawn = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(drawn, kind, quality=quality)
    return drawn.getvalue()


def complete(classes: int = 12) -> Report:
    """A report that has everything, with as many pictures as there may be."""
    names = tuple(f"species {number}" for number in range(classes))
    given, small = report(mistakes=24), noise(44)
    figures = given.test["classes"]["ants"]
    own = {name: {**figures, "recall": {**figures["recall"], "value": 1 - n / 2000}} for n, name in enumerate(names)}
    points = [
        {
            "x": (number % 25) / 25, "y": number / POINTS, "label": names[number % classes], "split": "test",
            "predicted": names[number * 7 % classes], "domain": ("field", "studio")[number % 2],
            "look": number % classes if number % classes < 21 else -1, "place": number % 2,
        }
        for number in range(POINTS)
    ]  # fmt: skip
    image = noise(144)
    both = [("bees", image), ("ants", image)]
    evidence = [Evidence(image, both, "ants", "bees", 0.9, f"photos/{number}.jpg") for number in range(12)]
    hits = [replace(one, evidence=[("ants", b"")], predicted="ants") for one in evidence]
    levels = [Level(level, "layer1", 64, 16, noise(288)) for level in ("low", "mid", "high")]
    return replace(
        given,
        test={**given.test, "classes": own},
        dataset={**given.dataset, "by_class": {name: {"train": 300, "val": 60, "test": 60} for name in names}},
        advice=[Advice("Check 4 labels", "They are probably wrong.", "labels")],
        pictures={name: noise(700, "PNG") if classes < 20 else picture() for name in ("confusion", "curves", "recall")},
        confusions=[Confusion(names[0], names[n % classes], 90 - n, 0.1) for n in range(1, 51)],
        class_mistakes={name: [small] * 3 for name in names[:50]},
        duplicates=[[small] * 5] * 8,
        mistakes=[replace(one, thumbnail=noise(160)) for one in given.mistakes],
        reasons=Why("layer4", evidence, hits, noise(300), (64, 7), image, levels),
        embedding=Embedding(points, names[:21], ["field", "studio"], noise(25 * 48, quality=20), 25, 9000),
        lineage={"git commit": "1234567", "data version": "abcdefg"},
        suspected=0,
    )


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=[*BROWSER])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(complete()))
    return path


@pytest.fixture(scope="module")
def page_of_any_number(base) -> Path:
    """The page of a real evaluation, of images with any number of classes."""
    return shapes_evaluated(base).report / "report.html"


def opened(browser: Browser, path: Path, scheme: str = "light", size: dict | None = None) -> tuple[Page, list[str]]:
    page = browser.new_context(color_scheme=scheme, viewport=size or DESK, offline=True).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    return page, said


@pytest.mark.parametrize("which", ["path", "page_of_any_number"])
@pytest.mark.parametrize(("scheme", "size"), [("light", DESK), ("dark", DESK), ("light", PHONE)])
def test_there_is_no_error_and_no_serious_finding_of_axe_and_nothing_is_wider_than_the_page(
    browser, which, scheme, size, request
):
    page, said = opened(browser, request.getfixturevalue(which), scheme, size)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    found = Axe().run(page).response["violations"]
    serious = [
        (one["id"], [node["target"] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == [] and said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_tables_are_sorted_by_a_click_and_filtered_by_words(browser, path):
    page, said = opened(browser, path)
    table = page.locator("#classes table")
    first = table.locator("tbody th")
    table.get_by_role("button", name="Class").click()
    assert first.all_inner_texts()[:3] == ["species 0", "species 1", "species 10"]
    recall = table.get_by_role("button", name="Recall")
    recall.click()
    recall.click()
    values = [
        float(value)
        for value in table.locator("tbody td:nth-child(5)").evaluate_all("all => all.map(one => one.dataset.value)")
    ]
    assert values == sorted(values, reverse=True)
    expect(table.locator("th[aria-sort=descending]")).to_contain_text("Recall")
    page.get_by_label("Filter classes").first.fill("SPECIES 1")
    expect(table.locator("tbody tr:visible")).to_have_count(3)  # 1, 10, 11
    page.get_by_label("Filter mistakes").fill("23.jpg")
    expect(page.locator("#mistakes li:visible")).to_have_count(1)
    assert said == []


def test_a_point_of_the_map_shows_its_image_to_the_mouse_a_finger_and_the_keyboard(browser, path):
    page, said = opened(browser, path)
    told, field = page.locator(".told"), page.locator(".field")
    field.scroll_into_view_if_needed()
    field.focus()
    page.keyboard.press("ArrowRight")
    expect(told).to_have_text("species 0. field, test (1 of 600)")
    expect(page.locator(".seen")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(told).to_have_text("species 1, predicted as species 7. studio, test (2 of 600)")
    box = page.locator(".field svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.02, box["y"] + box["height"] * 0.02)
    expect(told).to_contain_text("(1 of 600)")
    colour = "getComputedStyle(document.querySelectorAll('.point')[1]).fill"
    by_class = page.evaluate(colour)
    page.get_by_role("radio", name="domains").check()
    assert page.evaluate(colour) != by_class and page.get_by_text("species 3", exact=True).count()
    assert said == []


def test_a_report_of_a_thousand_classes_is_small_and_shows_the_worst_and_finds_the_others(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(complete(1000)))
    assert path.stat().st_size < LIMIT_BYTES
    page, said = opened(browser, path)
    rows = page.locator("#classes tbody tr:visible")
    expect(rows).to_have_count(50)
    page.get_by_label("Filter classes").first.fill("species 997")
    expect(rows).to_have_count(1)
    page.get_by_label("Filter classes").first.fill("")
    expect(rows).to_have_count(50)
    page.locator("#classes").get_by_role("button", name="Show all 1,000").click()
    expect(rows).to_have_count(1000)
    assert said == []


def test_the_page_is_complete_without_its_script_and_can_be_printed(browser, path):
    page = browser.new_context(java_script_enabled=False, viewport=DESK).new_page()
    page.goto(path.as_uri())
    expect(page.locator("#classes tbody tr:visible")).to_have_count(12)
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF") and len(printed) > 100_000
