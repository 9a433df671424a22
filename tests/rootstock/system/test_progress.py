"""Progress is a bar on a terminal, and elsewhere a line every ten seconds."""

import re
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


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def worked(tally: progress.Tally, clock: list[float], seconds: int, rate: int) -> str:
    for _ in range(seconds):
        clock[0] += 1
        tally.add(rate)
    return str(tally)


def test_what_an_interrupted_run_did_is_no_part_of_the_rate(clock):
    tally = progress.Tally("fine_tune", 10_000, "images")
    tally.add(0, skip=8_000)
    assert worked(tally, clock, 10, 20) == "fine_tune: 8,200 of 10,000 images, 20 images/s, 1 min 30 s left"
    tally.add(0, skip=1_000)  # epochs that patience saves
    assert str(tally) == "fine_tune: 9,200 of 10,000 images, 20 images/s, 40 s left"


def test_a_slow_beginning_says_nothing_of_the_time_left_for_long(clock):
    tally = progress.Tally("extract", 100_000, "images")
    worked(tally, clock, 60, 1)
    assert worked(tally, clock, 60, 100).endswith(" 100 images/s, 15 min 39 s left")
    slower = worked(tally, clock, 360, 50)  # half of the time there was before tells the rate of a long run
    assert slower.endswith(" 50 images/s, 25 min 19 s left")
    assert len(tally.earlier) < 200


def test_on_a_terminal_what_was_skipped_is_shown_but_in_no_rate():
    code = (
        "import sys, time; from rootstock.system import progress\n"
        "with progress.bar('fine_tune', 1000) as advance:\n"
        "    advance(0, skip=900)\n"
        "    for _ in range(30): time.sleep(0.1); advance(1)"
    )
    said = run_on_terminal([sys.executable, "-c", code], columns=100)
    assert "92%" in said and "920/1000" in said
    assert all(float(rate) < 15 for rate in re.findall(r"([0-9.]+) images/s", said))


def test_a_short_task_prints_no_progress(capsys):
    assert list(progress.track("abc", "extract", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
