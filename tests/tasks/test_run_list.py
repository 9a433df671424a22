"""The list of runs: experiments and the history of champions as one, in order, with figures and reasons."""

import shutil
import sys
from contextlib import chdir
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from rootstock.model import history
from rootstock.model.history import Row
from tasks.bridge import champion, experiments, run_list
from tasks.bridge.run_list import Run, format_runs
from tests.tasks.test_git import git

LATER = "2100-01-01T12:00:00+00:00"
INTERVAL = {"value": 0.9, "low": 0.85, "high": 0.94}


@pytest.fixture
def here(after_flow, monkeypatch):
    """A workspace in which the flow has run, as the current folder."""
    experiments._cache.cache_clear()
    with chdir(after_flow.root):
        yield after_flow
    experiments._cache.cache_clear()


def test_a_run_is_listed_with_the_time_figures_and_data_version_of_its_experiment(here):
    [run] = run_list.list_runs()
    [(name, at)] = [(kept.name, kept.at) for kept in experiments.list_kept()]
    assert (run.name, run.at, run.champion, run.images, run.why) == (name, at, "", 45, "")
    assert run.validation == history.read_accuracy(here.root / "data/report/metrics.json")
    assert run.test == history.read_accuracy(here.root / "data/report/test.json")
    assert f"md5: {run.data}" in (here.root / "dvc.lock").read_text()


def test_a_decision_and_the_experiment_of_its_run_are_one_line(here):
    lock = (here.root / "dvc.lock").read_text()
    first = Row(history.FIRST, 1, "The first champion.", 45, lock=lock, params="seed: 0", model="a")
    [name] = [kept.name for kept in experiments.list_kept()]
    worse = Row(history.REJECTED, 1, "It is worse.", 105, 60, ("shed",), at=LATER, run="lost", validation=INTERVAL)
    history.write(here.root / "data", [first, worse])
    runs = run_list.list_runs()
    assert [(run.name, run.champion, run.why) for run in runs] == [
        (name, "v1, now", "The first champion."), ("lost", "rejected", "It is worse."),
    ]  # fmt: skip
    assert runs[0].test is not None  # of the experiment: an earlier version wrote no figures
    assert (runs[1].validation, runs[1].test, runs[1].at) == (INTERVAL, None, datetime.fromisoformat(LATER))
    history.write(here.root / "data", [first, replace(worse, run=name)])
    assert [run.name for run in run_list.list_runs()] == ["", name]  # its own run, not one with the same lock


def test_an_older_decision_without_a_name_is_one_line_with_the_only_experiment_it_can_be(here):
    lock = here.root / "dvc.lock"
    first = Row(history.FIRST, 1, "The first champion.", 45, lock=lock.read_text(), params="seed: 0", model="a")
    undecided = Row(history.UNDECIDED, 1, "Too few.", 45, comparison='[{"what": "overall"}]')
    untrained = Row(history.UNDECIDED, 1, "Too few to train.", 45)
    history.write(here.root / "data", [first, undecided, untrained])

    def outcomes() -> set[tuple[str, str]]:
        return {(run.name, run.why) for run in run_list.list_runs() if run.champion == history.UNDECIDED}

    lock.write_text(lock.read_text().replace("max_iterations: 300", "max_iterations: 77"))
    experiments.save_experiment("zebra")
    assert outcomes() == {("zebra", "Too few."), ("", "Too few to train.")} and len(run_list.list_runs()) == 3
    lock.write_text(lock.read_text().replace("max_iterations: 77", "max_iterations: 78"))
    experiments.save_experiment("yak")
    assert outcomes() == {("", "Too few."), ("", "Too few to train.")}  # it may be either


def test_decisions_on_which_nothing_was_trained_and_rollbacks_have_a_data_version(here):
    [ran] = run_list.list_runs()
    lock = (here.root / "dvc.lock").read_text()
    untrained = champion.row_of(history.UNDECIDED, 1, "Too few.", trained=False)
    assert untrained.data == ran.data
    rows = [
        Row(history.FIRST, 1, "The first champion.", 45, lock=lock, params="seed: 0", model="a"),
        replace(untrained, data="0123456"),
        Row(history.ROLLED_BACK, 1, "v1 in place of v2.", 45, at=LATER),  # of an earlier version
    ]
    history.write(here.root / "data", rows)
    assert [run.data for run in run_list.list_runs()] == [ran.data, "0123456", ran.data]


def test_changes_since_the_previous_run_are_named_and_the_latest_runs_come_last(here):
    lock = here.root / "dvc.lock"
    lock.write_text(lock.read_text().replace("max_iterations: 300", "max_iterations: 77"))
    experiments.save_experiment("zebra")
    assert [run.why for run in run_list.list_runs()] == ["", "head.max_iterations 300 -> 77"]
    assert [(run.name, run.why) for run in run_list.list_runs(1)] == [("zebra", "head.max_iterations 300 -> 77")]
    git(here, "commit", "--allow-empty", "-qm", "work goes on")
    assert len(run_list.list_runs()) == 2  # those of earlier commits, too


def test_results_that_are_committed_are_not_kept_again(here):
    [kept] = experiments.list_kept()
    again = experiments.keep("again")
    assert (again.name, len(experiments.list_kept())) == (kept.name, 1)
    assert again.note == f"Nothing new to keep: all results are those of experiment {kept.name}."
    git(here, "add", "dvc.lock")
    git(here, "commit", "-qm", "results")
    assert experiments.keep("again").note.endswith("those of the last commit.")
    (here.root / "dvc.lock").open("a").write("\n")
    assert experiments.keep("another").note.startswith("Kept as experiment another")


def test_the_list_works_where_the_cache_git_or_the_lock_is_missing_or_damaged(here):
    shutil.rmtree(".dvc/cache")
    [run] = run_list.list_runs()
    assert (run.validation, run.test, run.images) == (None, None, None) and run.data
    (here.root / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    experiments.save_experiment("empty")
    assert run_list.list_runs()[-1].data == ""
    shutil.rmtree(".git")
    assert run_list.list_runs() == []
    history.write(here.root / "data", [Row(history.FIRST, 1, "The first champion.", 45, lock="lock")])
    assert [run.champion for run in run_list.list_runs()] == ["v1, now"]


def test_every_line_fits_a_terminal_and_names_cannot_break_it():
    why = "The challenger is better: " + "90.0% test accuracy on shed; " * 9
    accuracy = {"value": 1.0, "low": 0.985, "high": 1.0}
    run = Run(
        "psychedelic-armadillo",
        "v12, now",
        datetime(2026, 1, 2, tzinfo=UTC),
        accuracy,
        accuracy,
        "3f2a81c",
        1_234_567,
        why,
    )
    lines = format_runs(
        [run, replace(run, name="", at=None, test=None, images=None, data="", why="")], 120
    ).splitlines()
    assert max(map(len, lines)) <= 120
    assert " ".join(line.strip() for line in lines[2:-1]) == why.strip()
    assert lines[0].split()[:3] == ["run", "champion", "when"]
    assert "100 (98.5 to 100)" in lines[1] and "3f2a81c (1,234,567)" in lines[1]


def test_the_command_says_where_runs_would_come_from(here, workspace):
    said = workspace.run(sys.executable, "-m", "flows.runs").stdout
    assert said == "There are no runs yet: `python -m flows.pipeline` runs the first.\n"
    assert here.run(sys.executable, "-m", "flows.runs").stdout.splitlines()[1].split()[0] in git(here, "for-each-ref")


@pytest.mark.parametrize("last", ["0", "-3"])
def test_a_number_of_runs_below_one_is_an_error_in_one_sentence(workspace, last):
    done = workspace.run(sys.executable, "-m", "flows.runs", "--last", last, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"runs: --last is {last}; expected at least 1.\n")


def test_dvc_exp_show_with_metrics_fits_120_columns_unless_options_say_what_to_show(here):
    shown = here.run("dvc", "exp", "show", "-A", "--no-pager", COLUMNS="120")
    head = next(line for line in shown.stdout.splitlines() if "Experiment" in line)
    assert head.split() == [
        "Experiment",
        "Created",
        "winner",
        "accuracy",
        "low",
        "high",
        "log_loss",
    ]
    assert max(map(len, shown.stdout.splitlines())) <= 120 and "most columns are left out" in shown.stderr
    told = here.run("dvc", "exp", "show", "--csv")
    assert "head.l2" in told.stdout and "balanced" in told.stdout and "left out" not in told.stderr
