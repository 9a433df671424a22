"""Names are shown as they are, and nothing in them takes effect in Markdown, spreadsheets, terminals, paths or git."""

import csv
import io
import re
import subprocess
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given, strategies as st
from markdown_it import MarkdownIt

from rootstock.config import params
from rootstock.evaluation import compare_report, decision, decision_report, model_card
from rootstock.features import cache
from rootstock.ingest import sources
from rootstock.ingest.scan import Scan
from rootstock.system import escape
from tests.images import put

PATHS = (
    "../../../../out/pwn", "/etc/passwd", "..", ".", "", "~", "-rf", "--help", ".hidden", "a/b", "a\\b", "a\0b",
    "a.lock", "a..b", "a.", "x@{1}", "HEAD^", "a:b", "a b", "a\nb", "é" * 300, "x" * 500, "CON", "a.lock.b",
)  # fmt: skip
MARKDOWN = (
    "<script>alert(1)</script>", "[a](javascript:alert(1))", "![a](http://evil.example/x.png)", "a|b", "|", "`",
    "``a``", "**a**", "_a_", "a_b", "__init__", "~~a~~", "# a", "a #", "a ##", "- a", "1. a", "1) a", "1.5", "+ a",
    "> a", "=", "===", "---", "    a", "&lt;", "&#60;", "&amp", "$a$", "\\", "a\\", "\\|", "<!-- a", "https://evil.example",
    "<a@b.example>", "[a]: b", "***",
)  # fmt: skip
TERMINAL = (
    "\x1b[2J", "\x1b]0;title\x07", "\u202egpj.exe", "\ud800", "\x9b2J", "\u2028", "\u0645\u06cc\u200c\u062e",
    "\U0001f469\u200d\U0001f467",
)  # fmt: skip
SPREADSHEET = (
    "=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\r", "\uff1d1", "'=1", "''=1", "'a", "a,b", '"', "007", "-1.5e3",
    '=HYPERLINK("http://evil.example")',
)  # fmt: skip
NASTY = (*PATHS, *MARKDOWN, *TERMINAL, *SPREADSHEET)
SIGNS = "=+-@'\t\r\n|_*`[]()<>!#.\\/&;~$1 a\x1b\u202e\uff1d"
NO_TEXT = "\ud800"  # half a character, of a file's bytes that are no UTF-8: printed, in no table
names = st.text(max_size=120) | st.text(alphabet=SIGNS, max_size=12) | st.sampled_from(NASTY)
PAGE = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def shown(text: str) -> str:
    """Return a name as a reader sees it."""
    return escape.printable(" ".join(text.split()))


def read(markdown: str) -> str:
    """Return the words of all text in a page."""
    words = []
    for token in PAGE.parse(markdown):
        assert token.type != "html_block"
        for part in token.children or ():
            assert part.type in ("text", "text_special"), f"{part.type} in {markdown!r}"
            words.append(part.content)
    return "".join(words)


@given(names)
@example("a\\")
@example("1.")
@example("0 #")
@example("a ##")
@example("# #")
def test_markdown_shows_a_name_as_it_is(name):
    assert read(f"# {escape.markdown(name)}") == shown(name)
    assert read(f"Before:{escape.markdown(name)}, after") == f"Before:{shown(name)}, after"
    if shown(name):
        assert read(escape.markdown(name)) == shown(name)
        assert read(f"- {escape.markdown(name)}") == shown(name)
    table = PAGE.render(f"| a | b |\n|---|---|\n| {escape.markdown(name)} | second |\n")
    assert table.count("<td>") == 2 and "<td>second</td>" in table


@given(names)
def test_a_table_in_a_terminal_shows_a_name_as_it_is(name):
    assert escape.plain(escape.markdown(name)) == shown(name)
    assert escape.plain(f"| {escape.markdown(name)} | **1** |") == f"| {shown(name)} | **1** |"


@given(names)
def test_a_printed_name_contains_no_control_characters(name):
    said = escape.printable(name)
    assert not [char for char in said if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")]
    assert not set(said) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
    assert escape.printable(said) == said


@given(st.lists(names.filter(lambda name: NO_TEXT not in name), max_size=4))
def test_a_name_in_a_csv_cell_is_never_a_formula_and_can_be_restored(found):
    table = pd.DataFrame({"class": found, "images": range(len(found))})
    rows = list(csv.reader(io.StringIO(escape.as_csv(table), newline="")))
    for name, (cell, count) in zip(found, rows[1:], strict=True):
        assert not re.match(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]", cell)
        assert escape.from_cell(escape.cell(name)) == name
        assert count.isdigit()


@given(names)
def test_a_file_name_made_from_a_name_stays_in_its_folder(name):
    made = escape.file_name(name)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", made)
    assert len(made) <= 100 and ".." not in made
    assert (Path("/folder") / f"{made}.html").resolve().parent == Path("/folder")
    assert escape.file_name(name) == made


@given(st.lists(names | names.map(escape.file_name), unique=True, max_size=30))
def test_different_names_give_different_file_names(found):
    assert len({escape.file_name(name) for name in found}) == len(found)


def test_a_plain_name_is_not_escaped():
    for name in ("wise-goat", "nightly_3", "v1.2", "A"):
        assert escape.file_name(name) == escape.markdown(name) == escape.cell(name) == name


@pytest.mark.parametrize("name", [name for name in NASTY if "\0" not in name])
def test_a_file_name_made_from_a_name_is_a_valid_git_ref(name):
    made = f"refs/exps/{escape.file_name(name)}"
    assert subprocess.run(["git", "check-ref-format", made], check=False).returncode == 0


def test_a_model_card_shows_classes_and_domains_as_they_are():
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    own = dict.fromkeys(("accuracy", "macro_f1", "top5", "log_loss", "ece"), score)
    domains = {name: {"images": 3, "accuracy": score} for name in NASTY if shown(name)}
    backbone = {"name": "a_net", "parameters": 1, "origin": "<b>", "licence": "*"}
    described = {"backbone": backbone, "classes": list(NASTY), "kind": "head", "temperature": 1.0}
    described["features"] = {"mirror": False}
    splits = dict.fromkeys(("train", "val", "test"), 3)
    by_class = {described["classes"][0]: {"train": 9, "val": 0, "test": 0}}
    scores = {**own, "domains": domains, "classes": dict.fromkeys(NASTY)}
    assert "Note: no test images of" in model_card.card(described, "", scores, {"splits": splits, "by_class": by_class})
    card = model_card.card(described, "The head won: <b>.", scores, {"splits": splits})
    assert "Note:" not in card
    page = PAGE.render(card.split("\n---\n", 1)[1])  # without the metadata
    assert not re.findall(r"<(?!/?(?:h1|p|ul|li|strong|table|thead|tbody|tr|th|td|pre|code|br)\b)[^>]*>", page)
    assert page.count("<tr>") == 1 + 5 + 1 + len(domains)


def test_tables_of_backbones_cached_features_and_decisions_show_names_as_they_are():
    nasty = "a|b <b>*c*</b> [d](e)\nf"
    numbers = dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high", "images_per_second"), 0.5)
    numbers |= dict.fromkeys(("parameters", "macs", "feature_bytes", "image_size"), 1)
    row = {"backbone": nasty, "layer": nasty, "variant": None, "origin": "x", "trained": "frozen", "reason": ""}
    table = pd.DataFrame([{**row, **numbers}, {**row, **numbers, "reason": nasty}])
    page = PAGE.render(compare_report.markdown(table))
    assert page.count("<tr>") == 2 and "<b>" not in page and "<a" not in page
    entry = cache.Entry(Path(nasty), {"backbone": nasty, "layer": nasty}, 1, 1, 1, 0.0, False)
    page = PAGE.render(cache.table([entry]))
    assert page.count("<tr>") == 2 and "<b>" not in page and "<a" not in page
    line = decision.PairedComparison("all", nasty, 3, 3, score())
    page = PAGE.render(decision_report.table([line]))
    assert page.count("<tr>") == 2 and "<b>" not in page and "<a" not in page


def score() -> dict[str, float]:
    return {"value": 0.5, "low": 0.4, "high": 0.6}


def test_a_manifest_with_escaped_cells_names_the_original_files_and_labels(tmp_path):
    found = ["=1+1", "+a", "-b", "@c", "'=d", "e"]
    for name in found:
        put(tmp_path / f"{name}.png", found.index(name))
    listed = pd.DataFrame({"path": [f"{name}.png" for name in found], "label": found})
    (tmp_path / "list.csv").write_text(escape.as_csv(listed))
    spec = params.Source(path=str(tmp_path / "list.csv"), domain="field")
    with Scan(tmp_path / "scratch") as scan:
        items = sources.open_source(spec, tmp_path / "scratch", scan).items
    assert sorted(item.label for item in items) == sorted(found)
    assert sorted(Path(item.path).stem for item in items) == sorted(found)
