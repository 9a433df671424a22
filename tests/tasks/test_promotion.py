"""A decision is carried out exactly once, by the next run if one is killed on the way."""

import json
import sys

import pytest

from rootstock.model import history
from tests.flows.test_repro_and_flow import UP_TO_DATE, experiments
from tests.power_cut import power_cut
from tests.retraining import deliver
from tests.serving import until
from tests.workspace import Workspace

PREPARE = """
import sys
from pathlib import Path
from rootstock.evaluation.decision import Decision
from rootstock.evaluation.paired_comparison import PairedComparison
from rootstock.config.params import Retrain
from tasks.bridge import champion, promotion, rollback, interrupted
from tasks.bridge.champion import DeliverySummary
better = Decision("promoted", "Better.")
worse = Decision("rejected", "Worse.", (PairedComparison("overall", "overall", 1, 1, {"value": 0.0}),))
def next_run(work):
    interrupted.finish(lambda said: None)
    if champion.is_aside():  # killed before it was decided: that is decided again
        work()
    promotion.publish()
def promote():
    promotion.promote(better, DeliverySummary(), "run", Retrain(git="push"))
def reject():
    promotion.restore_champion(worse, DeliverySummary(), "run", "what was delivered")
"""
pytestmark = [pytest.mark.usefixtures("one_server"), pytest.mark.slow]
RUNS = 3  # of a retraining that was killed: after them there is nothing left to do
KILLS = 40  # at moments spread over the whole of it


def own_remotes(contested: Workspace, root) -> Workspace:
    """Copy it, with remotes of its own."""
    workspace = contested.copy(root / "workspace")
    for name in ("origin", "shelf"):
        source = contested.root.parent / name
        if source.exists():
            workspace.run("cp", "-r", str(source), str(root / name))
    workspace.run("git", "remote", "set-url", "origin", str(root / "origin"))
    # Like a remote on another machine, its end outlives whoever pushes, and takes its locks away: nothing kills it.
    workspace.run("git", "config", "remote.origin.receivepack", "setsid --wait git-receive-pack")
    workspace.run("dvc", "remote", "modify", "--local", "shelf", "url", str(root / "shelf"))
    return workspace


def points(operations: int, kills: int = KILLS) -> list[int]:
    """Choose where to kill: evenly spread, with the middle."""
    return sorted({max(1, (2 * number + 1) * operations // (2 * kills)) for number in range(kills)})


def champions(workspace: Workspace) -> list[tuple[str, int]]:
    return [(row.decision, row.version) for row in history.read(workspace.root / "data")]


@pytest.mark.timeout(1800)
def test_a_promotion_killed_anywhere_is_completed_and_pushed_once_by_the_next_run(contested, tmp_path):
    with power_cut(tmp_path, PREPARE, contested.env, contested.root) as cut:
        _, operations = cut.run("promote()", own_remotes(contested, tmp_path / "whole").root)
        for at in points(operations):
            trial = own_remotes(contested, tmp_path / f"at-{at}")
            cut.run("promote()", trial.root, at)
            origin = trial.root.parent / "origin"
            until(lambda origin=origin: not [*origin.rglob("*.lock")], "git's end of the remote", 20)
            when = f"killed at operation {at} of {operations}"
            assert cut.run("next_run(promote)", trial.root)[0] == 0, when
            assert champions(trial) == [("first", 1), ("promoted", 2)], when
            assert history.read(trial.root / ".rootstock") == history.read(trial.root / "data"), when
            subjects = trial.run("git", "log", "--format=%s").stdout.splitlines()
            assert subjects == ["champion@v2: Better.", "in use", "start"], when
            origin = trial.run("git", "ls-remote", "origin").stdout
            assert "refs/tags/champion@v2" in origin, when
            assert f"{trial.run('git', 'rev-parse', 'HEAD').stdout.strip()}\trefs/heads/main" in origin, when
            assert trial.run("git", "diff", "--cached", "--name-only").stdout == "staged.md\n", when
            assert not (trial.root / ".rootstock" / "champion").exists(), when
        assert trial.status() == UP_TO_DATE
        assert trial.run("dvc", "status", "--cloud", "--json").stdout.strip() == "{}"


@pytest.mark.timeout(1800)
def test_a_restored_champion_is_complete_whatever_was_killed(contested, tmp_path):
    model = history.read(contested.root / ".rootstock" / "champion")[-1].model
    digest = "from tasks.bridge.champion import digest_of_model; print(digest_of_model())"
    with power_cut(tmp_path, PREPARE, contested.env, contested.root) as cut:
        _, operations = cut.run("reject()", own_remotes(contested, tmp_path / "whole").root)
        for at in points(operations):
            trial = own_remotes(contested, tmp_path / f"at-{at}")
            cut.run("reject()", trial.root, at)
            when = f"killed at operation {at} of {operations}"
            assert cut.run("next_run(reject)", trial.root)[0] == 0, when
            assert champions(trial) == [("first", 1), ("rejected", 1)], when
            assert not (trial.root / ".rootstock" / "champion").exists(), when
            assert (trial.root / ".rootstock" / "inbox.rejected").read_text() == "what was delivered", when
        assert trial.run("python", "-c", digest).stdout.strip() == model
        assert "run" in experiments(trial)


@pytest.mark.timeout(1800)
def test_a_rollback_killed_anywhere_is_completed_by_the_next_run_of_any_kind(contested, tmp_path):
    promoted = own_remotes(contested, tmp_path / "promoted")
    promoted.run("python", "-c", PREPARE + "promote()")
    with power_cut(tmp_path, PREPARE, promoted.env, promoted.root) as cut:
        back = "rollback.roll_back(None)"
        _, operations = cut.run(back, promoted.copy(tmp_path / "whole").root)
        for number, at in enumerate(points(operations)):
            trial = promoted.copy(tmp_path / f"at-{at}")
            cut.run(back, trial.root, at)
            when = f"killed at operation {at} of {operations}"
            begun = (trial.root / ".rootstock" / "rollback.json").exists()
            again = "interrupted.finish(print)" if begun and number % 2 else back
            if champions_if_there(trial)[-1:] != [("rolled back", 1)] or begun:
                assert cut.run(again, trial.root)[0] == 0, when
            assert champions(trial) == [("first", 1), ("promoted", 2), ("rolled back", 1)], when
            assert "[5.0]" not in (trial.root / "params.yaml").read_text(), when
            assert not (trial.root / ".rootstock" / "rollback.json").exists(), when
        assert trial.status() == UP_TO_DATE


def champions_if_there(workspace: Workspace) -> list[tuple[str, int]]:
    return [(row.decision, row.version) for row in history.read(workspace.root / ".rootstock")]


def test_a_push_that_failed_is_tried_again_and_one_that_succeeded_is_not(contested, tmp_path):
    workspace = own_remotes(contested, tmp_path)
    (tmp_path / "origin").rename(tmp_path / "away")
    assert "Not pushed" in workspace.run("python", "-c", PREPARE + "promote(); print(promotion.publish())").stdout
    (tmp_path / "away").rename(tmp_path / "origin")
    publish = "from tasks.bridge import promotion; print(promotion.publish())"
    assert workspace.run("python", "-c", publish).stdout == "Pushed data and tag.\n"
    assert workspace.run("python", "-c", publish).stdout == "\n"
    workspace.run("git", "clone", "-q", str(tmp_path / "origin"), str(tmp_path / "clone"))
    theirs = Workspace(tmp_path / "clone", workspace.env)
    theirs.run("git", "commit", "-q", "--allow-empty", "-m", "theirs, on top")
    theirs.run("git", "push", "-q", "origin", "main")
    assert workspace.run("python", "-c", publish).stdout == "\n"


def test_a_promotion_during_a_merge_is_committed_tagged_and_pushed_by_a_run_after_it(contested, tmp_path):
    workspace = own_remotes(contested, tmp_path)
    merging = workspace.root / ".git" / "MERGE_HEAD"
    merging.write_text(workspace.run("git", "rev-parse", "HEAD").stdout)
    waits = "champion@v2 is not committed yet, nor tagged: a merge is in progress; finish it first."
    promote = "print(promotion.promote(better, DeliverySummary(), 'run', Retrain(git='push')).note)"
    assert waits in workspace.run("python", "-c", PREPARE + promote).stdout
    finish = "from tasks.bridge import promotion, interrupted; interrupted.finish(print); print(promotion.publish())"
    assert waits in workspace.run("python", "-c", finish).stdout
    assert "champion@v2" not in workspace.run("git", "ls-remote", "origin").stdout
    merging.unlink()
    assert workspace.run("dvc", "repro").stderr.count("dvc: Committed and tagged champion@v2.") == 1
    assert workspace.run("git", "log", "-1", "--format=%s").stdout == "champion@v2: Better.\n"
    assert workspace.run("git", "show", "champion@v2:dvc.lock").stdout == (workspace.root / "dvc.lock").read_text()
    assert workspace.run("git", "diff", "--cached", "--name-only").stdout == "staged.md\n"
    assert workspace.run("python", "-c", finish).stdout == "Pushed data and tag.\n"
    assert "champion@v2" in workspace.run("git", "ls-remote", "origin").stdout


def test_the_experiment_of_a_promotion_is_tagged_if_params_changed_before_its_commit(contested, tmp_path):
    workspace = own_remotes(contested, tmp_path)
    (workspace.root / ".git" / "MERGE_HEAD").write_text(workspace.run("git", "rev-parse", "HEAD").stdout)
    workspace.run("python", "-c", PREPARE + "promote()")
    (workspace.root / ".git" / "MERGE_HEAD").unlink()
    workspace.set(evaluate={"mistakes": 13})
    said = workspace.run("python", "-c", "from tasks.bridge import interrupted; interrupted.finish(print)").stdout
    assert said.startswith("dvc.lock or params.yaml changed before champion@v2 was committed. Its experiment is tagged")
    assert workspace.run("git", "log", "-1", "--format=%s").stdout == "in use\n"
    assert workspace.run("git", "show", "champion@v2:dvc.lock").stdout == (workspace.root / "dvc.lock").read_text()
    assert not (workspace.root / ".rootstock" / "uncommitted.json").exists()


@pytest.mark.timeout(1800)
def test_a_retraining_killed_anywhere_leaves_one_champion_and_loses_no_delivery(contested, tmp_path, server):
    start = own_remotes(contested, tmp_path / "start")
    start.run("rm", "-r", ".rootstock/champion")
    start.set(retrain={"settle_seconds": 0.0, "min_new": 10, "git": "push"})
    start.run("git", "commit", "-qm", "retrain", "--", "params.yaml", "dvc.lock")
    deliver(start, "shed", 20)
    retrain = ("env", f"PREFECT_API_URL={server.url}", sys.executable, "-m", "flows.retrain")  # else a server each time
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
    for at in points(operations, kills=7):
        trial, _ = killed_at(at)
        said = [trial.run(*retrain).stdout.strip().splitlines()[-1]]
        while not said[-1].startswith("Nothing new") and len(said) < RUNS:
            said.append(trial.run(*retrain).stdout.strip().splitlines()[-1])
        when = f"killed at operation {at} of {operations}: {said}"
        assert said[-1].startswith("Nothing new"), when
        rows = champions(trial)
        assert [decision for decision, _ in rows].count("promoted") <= 1, when
        assert trial.status() == UP_TO_DATE, when
        subjects = trial.run("git", "log", "--format=%s").stdout
        last = max(version for _, version in rows)
        if rows[-1][0] == "promoted":
            assert subjects.count(f"champion@v{last}:") == 1, when
            assert f"champion@v{last}" in trial.run("git", "ls-remote", "origin").stdout, when
        images = json.loads((trial.root / "data" / "dataset" / "summary.json").read_bytes())["images"]
        assert (images > 45) == (rows[-1][0] == "promoted"), when
        assert len(list((trial.root / "data" / "inbox").rglob("*.png"))) == 60, when
