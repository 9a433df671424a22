"""Progress is a bar on a terminal, and elsewhere a line every ten seconds."""

import sys

import pytest

from rootstock.system import progress
from tests.terminal import run_on_terminal


@pytest.mark.parametrize("columns", [100, 0])
def test_progress_is_a_bar_on_a_terminal_and_lines_on_one_without_a_width(columns):
    code = (
        "import time; from rootstock.system import progress; progress.LINE_EVERY_S = 0.2\n"
        "for _ in progress.track(range(5), 'extract', 5): time.sleep(0.15)"
    )
    said = run_on_terminal([sys.executable, "-c", code], columns=columns)
    assert ("extract:  " in said and "%|" in said) == (columns > 0)
    assert ("extract: 2 of 5 images" in said) == (columns == 0)


def test_progress_without_a_terminal_is_a_line_every_ten_seconds(monkeypatch, capsys):
    now = iter(range(0, 1000, 4))  # a look at the clock every four seconds
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    with progress.bar("fine_tune", 1200) as advance:
        advance(0, cached=100)
        for _ in range(11):
            advance(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("fine_tune: ") and line.endswith("100 cached") for line in lines)
    assert 2 <= len(lines) <= 6
    assert "of 1,200 images, " in lines[0] and "images/s, " in lines[0] and " left" in lines[0]


def test_a_short_task_prints_no_progress(capsys):
    assert list(progress.track("abc", "extract", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
