"""The docs name only files, folders and modules that exist."""

import re
import subprocess

import pytest

from tests.imports import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"`((?:rootstock|tasks|flows|tests|benchmarks|docs)/[\w/.]+?)/?`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[\w-]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_folder_that_a_page_names_exists(page):
    text = page.read_text()
    named = {ROOT / found for found in NAMED.findall(text)} | {page.parent / found for found in LINK.findall(text)}
    assert [str(path.relative_to(ROOT)) for path in sorted(named) if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_names_exists(page):
    code = {
        path.name
        for folder in ("rootstock", "tasks", "flows", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert [name for name in re.findall(r"`(\w+\.py)`", page.read_text()) if name not in code] == []


def test_make_help_describes_every_target():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.search(r"^\.PHONY: (.+)", (ROOT / "Makefile").read_text(), re.M)
    assert targets and sorted(re.findall(r"^make ([\w-]+)  +\S", said, re.M)) == sorted(targets[1].split())


def test_the_table_in_the_readme_names_every_package():
    table = (ROOT / "README.md").read_text().partition("| question | room |")[2]
    rooms = [path.parent.relative_to(ROOT) for path in (ROOT / "rootstock").glob("*/__init__.py")]
    for room in (*rooms, "flows/ui", "tasks/bridge"):
        assert f"`{room}/" in table
