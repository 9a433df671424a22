"""Runs are kept in git without touching a person's work, even if they are killed."""

import shutil

import pytest

from tests.flows.test_repro_and_flow import experiments
from tests.power_cut import power_cut
from tests.workspace import Workspace, make_workspace

SAVE = "print(experiments.save_experiment('mine'), file=sys.stderr)"


def git(workspace: Workspace, *arguments: str) -> str:
    return workspace.run("git", *arguments).stdout.strip()


def saved(workspace: Workspace, name: str = "mine") -> str:
    """Save the workspace as an experiment; returns what was said."""
    code = f"from tasks.bridge import experiments; print(experiments.save_experiment({name!r}).note)"
    return workspace.run("python", "-c", code).stdout.strip()


def ref_of(workspace: Workspace, name: str = "mine") -> str:
    head = git(workspace, "rev-parse", "HEAD")
    return f"refs/exps/{head[:2]}/{head[2:]}/{name}"


def what_is_a_persons(workspace: Workspace) -> dict[str, bytes]:
    """Everything that saving is not to touch: every file, and of git's where HEAD is, what is staged, the stash."""
    ours = (".git", ".rootstock", ".dvc", "flows", "tasks", "rootstock")
    paths = [path for path in workspace.root.rglob("*") if path.relative_to(workspace.root).parts[0] not in ours]
    paths += [
        workspace.root / ".git" / name for name in ("HEAD", "index", "refs/stash", "logs/HEAD", "logs/refs/stash")
    ]
    return {str(path.relative_to(workspace.root)): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture(scope="module")
def edited(tmp_path_factory, prefect_home) -> Workspace:
    """A workspace with a dvc.lock, in which a person has edited, staged, stashed and left things lying about."""
    workspace = make_workspace(tmp_path_factory.mktemp("edited") / "workspace", prefect_home)
    shutil.rmtree(workspace.root / "photos")
    git(workspace, "rm", "-rq", "--cached", "photos")
    git(workspace, "commit", "-qm", "no photos")
    (workspace.root / "automations.yaml").open("a").write("# to be stashed\n")
    git(workspace, "stash")
    (workspace.root / "dvc.lock").write_text("schema: '2.0'\nstages:\n  backbone:\n    cmd: python -m tasks.backbone\n")
    (workspace.root / "params.yaml").open("a").write("# my edit\n")
    (workspace.root / "automations.yaml").open("a").write("# mine, too\n")
    (workspace.root / "staged.md").write_text("staged\n")
    git(workspace, "add", "staged.md")
    (workspace.root / "staged.md").open("a").write("and edited\n")
    (workspace.root / "untracked.md").write_text("mine\n")
    return workspace


EVERY = pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])  # operation, of make test-slow


@EVERY
def test_an_edit_survives_a_kill_at_every_file_operation_of_saving_an_experiment(edited, tmp_path, every):
    persons = what_is_a_persons(edited)
    with power_cut(tmp_path, "import sys; from tasks.bridge import experiments", edited.env, edited.root) as cut:
        status, operations = cut.run(SAVE, edited.copy(tmp_path / "whole").root)
        assert status == 0
        assert operations > 30
        for at in range(1, operations + 1, every):
            trial = edited.copy(tmp_path / "trial")
            cut.run(SAVE, trial.root, at)
            when = f"killed at operation {at} of {operations}"
            assert what_is_a_persons(trial) == persons, when
            assert cut.run(SAVE, trial.root)[0] == 0
            assert what_is_a_persons(trial) == persons, when
            assert git(trial, "show", f"{ref_of(trial)}:params.yaml").endswith("# my edit"), when
            assert not list((trial.root / ".git").rglob("*.lock")), when
            assert not list((trial.root / ".git").rglob("git-*.json")), when
            shutil.rmtree(trial.root)


def in_a_merge(workspace: Workspace) -> None:
    git(workspace, "stash", "-q")
    git(workspace, "switch", "-qc", "side")
    (workspace.root / "prefect.yaml").write_text("theirs: 1\n")
    git(workspace, "commit", "-qam", "theirs")
    git(workspace, "switch", "-q", "main")
    (workspace.root / "prefect.yaml").write_text("mine: 1\n")
    git(workspace, "commit", "-qam", "mine")
    workspace.run("git", "merge", "side", check=False)


def hooked(workspace: Workspace) -> None:
    for name in ("pre-commit", "commit-msg", "post-index-change", "reference-transaction", "post-commit", "pre-push"):
        hook = workspace.root / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
        hook.chmod(0o755)


def holding_a_submodule(workspace: Workspace) -> None:
    other = workspace.root.parent / "other"
    workspace.run("git", "init", "-q", str(other))
    workspace.run("git", "-C", str(other), "commit", "-q", "--allow-empty", "-m", "other")
    git(workspace, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "vendored")
    (workspace.root / "vendored" / "edited").write_text("there\n")


def settings(**named: str):
    def set_them(workspace: Workspace) -> None:
        for name, value in named.items():
            git(workspace, "config", name.replace("_", "."), value)

    return set_them


CIRCUMSTANCES = {
    "edits that are staged, stashed and neither": lambda workspace: None,
    "a detached HEAD": lambda workspace: git(workspace, "checkout", "-q", "--detach"),
    "another git program at work": lambda workspace: (workspace.root / ".git" / "index.lock").touch(),
    "HEAD.lock of one that was killed": lambda workspace: (workspace.root / ".git" / "HEAD.lock").touch(),
    "no index": lambda workspace: (workspace.root / ".git" / "index").unlink(),
    "a merge with a conflict": in_a_merge,
    "hooks that refuse": hooked,
    "signatures": settings(commit_gpgSign="true", tag_gpgSign="true", gpg_program="false"),
    "line ends converted": settings(core_autocrlf="true"),
    "a split index": settings(core_splitIndex="true", core_untrackedCache="true", core_fsmonitor="true"),
    "refs packed": lambda workspace: (saved(workspace), git(workspace, "pack-refs", "--all")),
    "a submodule": holding_a_submodule,
}


@pytest.mark.parametrize("circumstance", CIRCUMSTANCES)
def test_an_experiment_is_kept_in_any_state_of_git_and_the_state_stays(edited, tmp_path, circumstance):
    workspace = edited.copy(tmp_path / "workspace")
    CIRCUMSTANCES[circumstance](workspace)
    persons = what_is_a_persons(workspace)
    assert saved(workspace).startswith("Kept as experiment mine")
    assert what_is_a_persons(workspace) == persons
    for name in ("params.yaml", "dvc.lock", "automations.yaml"):
        assert git(workspace, "show", f"{ref_of(workspace)}:{name}") == (workspace.root / name).read_text().strip()
    assert git(workspace, "rev-parse", f"{ref_of(workspace)}^") == git(workspace, "rev-parse", "HEAD")
    assert "untracked.md" not in git(workspace, "ls-tree", "-r", "--name-only", ref_of(workspace))


def test_an_experiment_is_kept_in_a_worktree_of_its_own(edited, tmp_path):
    workspace = edited.copy(tmp_path / "workspace")
    beside = Workspace(tmp_path / "beside", workspace.env)
    git(workspace, "worktree", "add", "-q", str(beside.root))
    shutil.copy(workspace.root / "dvc.lock", beside.root)
    (beside.root / "params.yaml").open("a").write("# beside\n")
    assert saved(beside).startswith("Kept as experiment mine")
    assert git(workspace, "show", f"{ref_of(workspace)}:params.yaml").endswith("# beside")
    assert not (beside.root / "staged.md").exists()


def test_git_variables_set_by_a_hook_do_not_lead_to_another_repository(edited, tmp_path):
    workspace = edited.copy(tmp_path / "workspace")
    code = "from tasks.bridge import experiments; print(experiments.save_experiment('mine').note)"
    elsewhere = {"GIT_DIR": str(tmp_path), "GIT_INDEX_FILE": str(tmp_path / "index"), "GIT_WORK_TREE": str(tmp_path)}
    assert workspace.run("python", "-c", code, **elsewhere).stdout.startswith("Kept as experiment mine")
    assert git(workspace, "rev-parse", ref_of(workspace))


@pytest.mark.slow
def test_dvc_shows_applies_and_removes_kept_experiments(after_flow):
    [name] = experiments(after_flow)
    before = after_flow.outputs()
    assert experiments(after_flow)[name]["metrics"]["data/report/metrics.json"]["data"]["winner"]
    after_flow.set(head={"l2": [7.0]})
    after_flow.run("dvc", "exp", "apply", name)
    assert after_flow.outputs() == before
    after_flow.run("dvc", "exp", "branch", name, "kept")
    assert git(after_flow, "show", "kept:dvc.lock") == (after_flow.root / "dvc.lock").read_text().strip()
    after_flow.run("dvc", "exp", "remove", name)
    assert not experiments(after_flow)


def test_a_promotion_is_committed_alone_beside_what_a_person_has_staged(edited, tmp_path):
    workspace = edited.copy(tmp_path / "workspace")
    hooked(workspace)
    git(workspace, "config", "commit.gpgSign", "true")
    code = "from pathlib import Path; from tasks.bridge import git; "
    code += "print(git.commit([Path('dvc.lock'), Path('params.yaml')], 'champion@v2: better'))"
    made = workspace.run("python", "-c", code).stdout.strip()
    assert git(workspace, "rev-parse", "HEAD") == made
    assert git(workspace, "show", "--format=%s", "--name-only", "HEAD").split("\n\n") == [
        "champion@v2: better", "dvc.lock\nparams.yaml"
    ]  # fmt: skip
    assert git(workspace, "diff", "--cached", "--name-only") == "staged.md"
    assert git(workspace, "diff", "--name-only") == "automations.yaml\nstaged.md"
    assert workspace.run("python", "-c", code).stdout.strip() == made  # nothing new, no other commit


@EVERY
def test_a_commit_that_was_killed_anywhere_is_made_once_by_the_next_run(edited, tmp_path, every):
    work = "git.commit([Path('dvc.lock'), Path('params.yaml')], 'champion@v2')"
    prepare = "from pathlib import Path; from tasks.bridge import git"
    with power_cut(tmp_path, prepare, edited.env, edited.root) as cut:
        _, operations = cut.run(work, edited.copy(tmp_path / "whole").root)
        for at in range(2, operations + 1, every):
            trial = edited.copy(tmp_path / "trial")
            cut.run(work, trial.root, at)
            assert cut.run(work, trial.root)[0] == 0, f"killed at operation {at} of {operations}"
            assert git(trial, "log", "--format=%s") == "champion@v2\nno photos\nstart"
            assert git(trial, "diff", "--cached", "--name-only") == "staged.md"
            assert not list((trial.root / ".git").rglob("*.lock"))
            shutil.rmtree(trial.root)


def test_a_lock_that_another_git_program_holds_is_waited_for_and_then_named(edited, tmp_path):
    workspace = edited.copy(tmp_path / "workspace")
    (workspace.root / ".git" / "index.lock").touch()
    code = "from pathlib import Path; from tasks.bridge import git\ngit.LOCK_WAIT_S = 0.3\n"
    code += "try: git.commit([Path('dvc.lock')], 'ours')\nexcept git.GitError as error: print(error)"
    said = workspace.run("python", "-c", code).stdout
    assert "index.lock has existed for" in said
    assert "the file can be removed" in said
    assert git(workspace, "log", "-1", "--format=%s") == "no photos"


def test_changes_stashed_by_an_earlier_version_are_named_with_how_to_restore_them(edited, tmp_path):
    workspace = edited.copy(tmp_path / "workspace")
    code = "from tasks.bridge import git; print(git.left_by_dvc())"
    assert workspace.run("python", "-c", code).stdout.strip() == "None"
    git(workspace, "update-ref", "refs/exps/stash", "refs/stash")
    said = workspace.run("python", "-c", code).stdout
    assert "`git stash apply refs/exps/stash`" in said
    assert "git update-ref -d refs/exps/stash" in said
