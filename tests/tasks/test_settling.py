"""What was decided is carried out once, whatever is killed on the way: by whoever comes next."""

import json
import sys

import pytest

from rootstock import history
from tests.flows.test_retrain import deliver
from tests.flows.test_two_doors import ONLY_A_LOOK, experiments
from tests.power_cut import power_cut
from tests.workspace import Workspace

PREPARE = """
import sys
from pathlib import Path
from rootstock.challenge import Decision
from rootstock.inbox import Delivery
from rootstock.params import Retrain
from tasks import champion, rollback, settling, unfinished
from tasks.champion import Arrived
better, worse = Decision(promote=True, reason="Better."), Decision(promote=False, reason="Worse.")
class Nothing:
    def signature(self):
        return "what was delivered"
def next_run(work):
    unfinished.finish(lambda said: None)
    if champion.is_aside():  # killed before it was decided: that is decided again
        work()
    settling.publish()
def promote():
    settling.promote(better, Arrived(), "run", Retrain(git="push"))
def put_back():
    settling.put_back(worse, Arrived(), "run", Nothing())
"""
SAMPLES = 8  # kills of each; all of them with the mark ui


@pytest.fixture(scope="module")
def contested(flow_ran_in, tmp_path_factory) -> Workspace:
    """A workspace with a champion aside, a challenger in its place, and a remote to push to; do not change it."""
    folder = tmp_path_factory.mktemp("contested")
    workspace = flow_ran_in.copy(folder / "workspace")
    workspace.run("git", "init", "-q", "--bare", "-b", "main", str(folder / "origin"))
    workspace.run("git", "remote", "add", "origin", str(folder / "origin"))
    workspace.run("dvc", "remote", "add", "--default", "shelf", str(folder / "shelf"))
    workspace.run("git", "add", ".dvc/config", "dvc.lock", "params.yaml")
    workspace.run("git", "commit", "-qm", "in use")
    workspace.run("git", "push", "-q", "origin", "main")
    workspace.run("python", "-c", "from tasks import champion; champion.set_aside()")
    workspace.set(evaluate={"resamples": 120})  # makes another model's card and another dvc.lock
    workspace.set(head={"l2": [5.0]})
    workspace.run("dvc", "repro")
    (workspace.root / "staged.md").write_text("mine\n")
    workspace.run("git", "add", "staged.md")
    return workspace


def own_remotes(contested: Workspace, root) -> Workspace:
    """Copy it, with remotes of its own."""
    workspace = contested.copy(root / "workspace")
    for name in ("origin", "shelf"):
        source = contested.root.parent / name
        if source.exists():
            workspace.run("cp", "-r", str(source), str(root / name))
    workspace.run("git", "remote", "set-url", "origin", str(root / "origin"))
    workspace.run("dvc", "remote", "modify", "--local", "shelf", "url", str(root / "shelf"))
    return workspace


def points(operations: int, request) -> list[int]:
    """Choose where to kill: everywhere when asked for, else evenly spread."""
    every = "ui" in (request.config.getoption("-m") or "").replace("not ui", "")
    return list(range(1, operations + 1, 1 if every else max(operations // SAMPLES, 1)))


def champions(workspace: Workspace) -> list[tuple[str, int]]:
    return [(row.decision, row.version) for row in history.read(workspace.root / "data" / "model")]


def test_a_promotion_killed_anywhere_is_carried_out_and_pushed_once_by_the_next_run(contested, tmp_path, request):
    with power_cut(tmp_path, PREPARE, contested.env, contested.root) as cut:
        _, operations = cut.run("promote()", own_remotes(contested, tmp_path / "whole").root)
        for at in points(operations, request):
            trial = own_remotes(contested, tmp_path / f"at-{at}")
            cut.run("promote()", trial.root, at)
            when = f"killed at operation {at} of {operations}"
            assert cut.run("next_run(promote)", trial.root)[0] == 0, when
            assert champions(trial) == [("first", 1), ("promoted", 2)], when
            assert history.read(trial.root / ".rootstock") == history.read(trial.root / "data" / "model"), when
            subjects = trial.run("git", "log", "--format=%s").stdout.splitlines()
            assert subjects == ["champion@v2: Better.", "in use", "start"], when
            origin = trial.run("git", "ls-remote", "origin").stdout
            assert "refs/tags/champion@v2" in origin, when
            assert f"{trial.run('git', 'rev-parse', 'HEAD').stdout.strip()}\trefs/heads/main" in origin, when
            assert trial.run("git", "diff", "--cached", "--name-only").stdout == "staged.md\n", when
            assert not (trial.root / ".rootstock" / "champion").exists(), when
        assert trial.status() == ONLY_A_LOOK
        assert trial.run("dvc", "status", "--cloud", "--json").stdout.strip() == "{}"


def test_a_champion_put_back_is_whole_whatever_was_killed(contested, tmp_path, request):
    model = history.read(contested.root / ".rootstock" / "champion" / "model")[-1].model
    digest = "from tasks.champion import digest_of_model; print(digest_of_model())"
    with power_cut(tmp_path, PREPARE, contested.env, contested.root) as cut:
        _, operations = cut.run("put_back()", own_remotes(contested, tmp_path / "whole").root)
        for at in points(operations, request):
            trial = own_remotes(contested, tmp_path / f"at-{at}")
            cut.run("put_back()", trial.root, at)
            when = f"killed at operation {at} of {operations}"
            assert cut.run("next_run(put_back)", trial.root)[0] == 0, when
            assert champions(trial) == [("first", 1), ("rejected", 1)], when
            assert not (trial.root / ".rootstock" / "champion").exists(), when
            assert (trial.root / ".rootstock" / "inbox.rejected").read_text() == "what was delivered", when
        assert trial.run("python", "-c", digest).stdout.strip() == model
        assert "run" in experiments(trial)


def test_a_rollback_killed_anywhere_is_carried_out_by_the_next_run_of_any_kind(contested, tmp_path, request):
    promoted = own_remotes(contested, tmp_path / "promoted")
    promoted.run("python", "-c", PREPARE + "promote()")
    with power_cut(tmp_path, PREPARE, promoted.env, promoted.root) as cut:
        back = "rollback.bring_back(None)"
        _, operations = cut.run(back, promoted.copy(tmp_path / "whole").root)
        for number, at in enumerate(points(operations, request)):
            trial = promoted.copy(tmp_path / f"at-{at}")
            cut.run(back, trial.root, at)
            when = f"killed at operation {at} of {operations}"
            begun = (trial.root / ".rootstock" / "rollback.json").exists()
            again = "unfinished.finish(print)" if begun and number % 2 else back
            if champions_if_there(trial)[-1:] != [("brought back", 1)] or begun:
                assert cut.run(again, trial.root)[0] == 0, when
            assert champions(trial) == [("first", 1), ("promoted", 2), ("brought back", 1)], when
            assert "5.0" not in (trial.root / "params.yaml").read_text(), when
            assert not (trial.root / ".rootstock" / "rollback.json").exists(), when
        assert trial.status() == ONLY_A_LOOK


def champions_if_there(workspace: Workspace) -> list[tuple[str, int]]:
    return [(row.decision, row.version) for row in history.read(workspace.root / ".rootstock")]


def test_a_push_that_failed_is_tried_again_and_one_that_succeeded_is_not(contested, tmp_path):
    workspace = own_remotes(contested, tmp_path)
    (tmp_path / "origin").rename(tmp_path / "away")
    assert "Not pushed" in workspace.run("python", "-c", PREPARE + "promote(); print(settling.publish())").stdout
    (tmp_path / "away").rename(tmp_path / "origin")
    publish = "from tasks import settling; print(settling.publish())"
    assert workspace.run("python", "-c", publish).stdout == "Pushed, data and tag.\n"
    assert workspace.run("python", "-c", publish).stdout == "\n"
    workspace.run("git", "clone", "-q", str(tmp_path / "origin"), str(tmp_path / "clone"))
    theirs = Workspace(tmp_path / "clone", workspace.env)
    theirs.run("git", "commit", "-q", "--allow-empty", "-m", "theirs, on top")
    theirs.run("git", "push", "-q", "origin", "main")
    assert workspace.run("python", "-c", publish).stdout == "\n"


@pytest.mark.ui
def test_a_retraining_killed_anywhere_leaves_one_champion_and_loses_no_delivery(contested, tmp_path):
    start = own_remotes(contested, tmp_path / "start")
    start.run("rm", "-r", ".rootstock/champion")
    start.set(retrain={"settle_seconds": 0.0, "min_new": 10, "git": "push"})
    start.run("git", "commit", "-qm", "retrain", "--", "params.yaml", "dvc.lock")
    deliver(start, "shed", 20)
    retrain = (sys.executable, "-m", "flows.retrain")
    with power_cut(tmp_path, "", start.env, start.root):  # builds the library
        pass
    cutting = {"LD_PRELOAD": str(tmp_path / "power_cut.so"), "PYTHONDONTWRITEBYTECODE": "1"}

    def killed_at(at: int) -> tuple[Workspace, int]:
        trial, tally = own_remotes(start, tmp_path / f"run-{at}"), tmp_path / f"tally-{at}"
        tally.write_bytes(bytes(8))
        told = {"POWER_CUT_ROOT": str(trial.root), "POWER_CUT_TALLY": str(tally), "POWER_CUT_AT": str(at)}
        trial.run("setsid", "--wait", *retrain, check=at == 0, **cutting, **told)
        return trial, int.from_bytes(tally.read_bytes(), sys.byteorder)

    _, operations = killed_at(0)
    for at in range(operations // 13, operations, operations // 13):
        trial, _ = killed_at(at)
        for _ in range(2):
            done = trial.run(*retrain)
        when = f"killed at operation {at} of {operations}: {done.stdout[-300:]}"
        assert trial.run(*retrain).stdout.strip().splitlines()[-1].startswith("Nothing new"), when
        rows = champions(trial)
        assert [decision for decision, _ in rows].count("promoted") <= 1, when
        assert trial.status() == ONLY_A_LOOK, when
        subjects = trial.run("git", "log", "--format=%s").stdout
        last = max(version for _, version in rows)
        if rows[-1][0] == "promoted":
            assert subjects.count(f"champion@v{last}:") == 1, when
            assert f"champion@v{last}" in trial.run("git", "ls-remote", "origin").stdout, when
        images = json.loads((trial.root / "data" / "report" / "metrics.json").read_bytes())["images"]
        assert (sum(images.values()) > 45) == (rows[-1][0] == "promoted"), when
        assert len(list((trial.root / "data" / "inbox").rglob("*.png"))) == 60, when
