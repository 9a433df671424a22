"""A report names the git commit and the data version that it comes from, where there are any."""

import subprocess

import pytest

from tasks.bridge.lineage import lineage

LOCK = "schema: '2.0'\nstages:\n  ingest:\n    outs:\n    - path: data/dataset\n      md5: 0123456789abcdef.dir\n"


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commit_and_the_data_version_are_named_as_in_the_list_of_runs(folder):
    git("init")
    (folder / "dvc.lock").write_text(LOCK)
    git("add", ".")
    git("commit", "-m", "a")
    found = lineage()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert found == {"git commit": commit[:7], "data version": "0123456"}
    (folder / "dvc.lock").write_text(LOCK + "\n")
    assert lineage()["git commit"] == f"{commit[:7]}, with uncommitted changes"


@pytest.mark.parametrize(
    "lock", [None, "", "stages: []", "stages: {ingest: {}}", "{", "\x00", LOCK.replace("md5", "files")]
)
def test_without_git_and_a_lock_nothing_is_said_of_them(folder, lock):
    if lock is not None:
        (folder / "dvc.lock").write_text(lock)
    assert lineage() == {}
