"""An earlier version of the data is restored as a whole, or nothing in the workspace changes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rootstock.system.errors import RootstockError
from tasks.bridge import versions

STAGE = "stages: {copy: {cmd: 'mkdir out; cp in out/a', deps: [in], outs: [out]}}"


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", arguments[0], "-q", *arguments[1:]], check=True, capture_output=True)


def add_remote(folder: Path) -> None:
    dvc("remote", "add", "--default", "shelf", str(folder))


@pytest.fixture
def locks(tmp_path, monkeypatch) -> tuple[str, str]:
    """Two versions of the output of a stage, the second of which is in the workspace; return the dvc.lock of each."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    dvc("init")
    Path("dvc.yaml").write_text(STAGE)
    found = []
    for content in ("first", "second"):
        Path("in").write_text(content)
        dvc("repro")
        found.append(Path("dvc.lock").read_text())
    return found[0], found[1]


def test_an_earlier_version_and_the_later_one_are_restored(locks):
    for lock, content in zip(locks, ("first", "second"), strict=True):
        versions.restore_version(lock)
        assert (Path("out/a").read_text(), Path("dvc.lock").read_text()) == (content, lock)


@pytest.mark.parametrize("remote", [True, False])
def test_a_version_that_is_nowhere_leaves_the_workspace_as_it_is(locks, remote, tmp_path_factory):
    if remote:
        add_remote(tmp_path_factory.mktemp("shelf"))
    dvc("gc", "--workspace", "--force")
    with pytest.raises(RootstockError, match=r"cannot be restored: .*out"):
        versions.restore_version(locks[0])
    assert (Path("out/a").read_text(), Path("dvc.lock").read_text()) == ("second", locks[1])


def test_a_version_that_only_the_remote_has_is_fetched(locks, tmp_path_factory):
    add_remote(tmp_path_factory.mktemp("shelf"))
    versions.restore_version(locks[0])
    dvc("push")
    versions.restore_version(locks[1])
    shutil.rmtree(".dvc/cache")
    versions.restore_version(locks[0])
    assert Path("out/a").read_text() == "first"


def test_where_a_version_cannot_be_written_the_present_one_is_put_back(locks, monkeypatch):
    checkout, calls = versions.Repo.checkout, []

    def full(repo, *arguments, **settings):
        calls.append(settings)
        if len(calls) == 1:
            shutil.rmtree("out")
            raise OSError(28, "No space left on device")
        return checkout(repo, *arguments, **settings)

    monkeypatch.setattr(versions.Repo, "checkout", full)
    with pytest.raises(RootstockError, match="cannot be restored: The disk is full"):
        versions.restore_version(locks[0])
    assert (Path("out/a").read_text(), Path("dvc.lock").read_text()) == ("second", locks[1])
