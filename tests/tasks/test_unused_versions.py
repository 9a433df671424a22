"""What nothing refers to is named, then removed from DVC's cache; commits, experiments and champions keep theirs."""

import re
from pathlib import Path

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

from rootstock.config import params_file
from rootstock.model import history
from rootstock.model.history import Row
from tests.workspace import Workspace, make_workspace, without_seconds

pytestmark = [pytest.mark.usefixtures("one_server"), pytest.mark.slow]


def cache(workspace: Workspace, *arguments: str, check: bool = True):
    return workspace.run("python", "-m", "flows.cache", "--unused-versions", *arguments, check=check)


def cached(workspace: Workspace) -> set[str]:
    """Return the digests of the files in DVC's cache."""
    folder = workspace.root / ".dvc/cache/files/md5"
    return {f"{path.parent.name}{path.name}" for path in folder.rglob("*") if path.is_file()}


def recorded(lock: str) -> set[str]:
    """Return the digests of a dvc.lock's outputs."""
    stages = YAML(typ="safe").load(lock)["stages"].values()
    return {out["md5"] for stage in stages for out in stage["outs"]}


def lock_of(workspace: Workspace) -> str:
    return (workspace.root / "dvc.lock").read_text()


def train(workspace: Workspace, l2: float) -> str:
    """Train another head with `dvc repro`; return the dvc.lock."""
    workspace.set(head={"l2": [l2]})
    workspace.repro()
    return lock_of(workspace)


def test_what_a_later_repro_left_behind_is_named_and_removed_and_runs_are_kept(after_flow):
    run, kept = lock_of(after_flow), cached(after_flow)
    strengths = params_file.load(after_flow.root / "params.yaml").head.l2
    forgotten, latest = train(after_flow, 5.0), train(after_flow, 7.0)
    gone = recorded(forgotten) - recorded(latest) - recorded(run)
    before = cached(after_flow)
    said = cache(after_flow, "--dry-run").stdout
    count = int(re.search(r"- (\d+) files \(.* that no commit, tag, experiment or champion refers to", said)[1])
    assert count >= len(gone) > 0 and cached(after_flow) == before
    assert f"{count} files (" in cache(after_flow).stdout
    assert len(before - cached(after_flow)) == count and not gone & cached(after_flow)
    assert kept <= cached(after_flow)  # the flow run is an experiment
    assert recorded(latest) <= cached(after_flow) and "didn't change" in after_flow.repro()
    assert lock_of(after_flow) == latest
    again = train(after_flow, 5.0)  # computed again
    assert without_seconds(again.encode()) == without_seconds(forgotten.encode())
    after_flow.set(head={"l2": list(strengths)})
    assert "restored" in after_flow.flow()


def test_a_champion_of_a_workspace_without_git_is_kept(tmp_path, prefect_home):
    workspace = make_workspace(tmp_path / "workspace", prefect_home, git=False)
    workspace.run("python", "-m", "tasks.bridge.versions")
    champion, forgotten, latest = (train(workspace, l2) for l2 in (3.0, 5.0, 7.0))
    rows = [Row(history.FIRST, 1, "The first champion.", 45, lock=champion, params="seed: 0", model="a")]
    for folder in ("data", ".rootstock"):
        history.write(workspace.root / folder, rows)
    workspace.run("dvc", "add", "data/history.parquet")
    cache(workspace)
    assert recorded(champion) | recorded(latest) <= cached(workspace)
    assert not (recorded(forgotten) - recorded(champion) - recorded(latest)) & cached(workspace)


def test_what_a_killed_run_of_another_machine_left_is_no_obstacle_and_one_at_work_is(after_repro):
    left = after_repro.root / ".rootstock/elsewhere/0f1e"
    left.mkdir(parents=True)
    (left.parent / "0f1e.lock").touch()
    with FileLock(left.parent / "0f1e.lock"):
        refused = cache(after_repro, "--dry-run", check=False)
    assert "A run that was handed over to this clone is using DVC's cache" in refused.stderr and left.exists()
    cache(after_repro, "--dry-run")
    assert not list(left.parent.iterdir())


def test_a_cache_that_others_may_share_is_left_alone(after_repro, tmp_path):
    shared = tmp_path / "shared"
    Path(after_repro.root / ".dvc/cache").rename(shared)
    after_repro.run("dvc", "config", "--local", "cache.dir", str(shared))
    refused = cache(after_repro, check=False)
    assert refused.returncode == 1 and "where other projects may use it, too" in refused.stderr
    assert "Traceback" not in refused.stderr and list(shared.rglob("*.dir"))


def test_versions_whose_data_are_gone_do_not_stop_it(after_flow):
    train(after_flow, 5.0)
    after_flow.run("python", "-m", "flows.pipeline")  # an experiment
    train(after_flow, 7.0)
    after_flow.run("dvc", "gc", "--workspace", "--force")
    before = cached(after_flow)
    latest = recorded(lock_of(after_flow))
    assert "no commit, tag, experiment or champion refers to" in cache(after_flow, "--dry-run").stdout
    cache(after_flow)
    assert latest & before <= cached(after_flow) and "didn't change" in after_flow.repro()
