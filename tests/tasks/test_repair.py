"""Files of DVC and Rootstock that a kill left half written are repaired by the next command, which reports it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rootstock.system.errors import RootstockError
from tasks.bridge import dvc_lock, promotion, repair, rollback, run_params, workspace as places
from tests.flows.test_repro_and_flow import UP_TO_DATE
from tests.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_server")

LOCK = """schema: '2.0'
stages:
  backbone:
    cmd: python -m tasks.backbone
    deps:
    - path: rootstock/backbones/blocks.py
      hash: md5
      md5: 0123456789abcdef0123456789abcdef
      size: 12
    outs:
    - path: data/backbone
      hash: md5
      md5: 0123456789abcdef0123456789abcdef.dir
      size: 12
      nfiles: 2
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in (".rootstock", ".dvc/tmp"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def of(pid: int, cmd: str = "dvc repro") -> dict:
    return {"pid": pid, "cmd": cmd}


@pytest.mark.parametrize("text", ["", "{", '{"write": {"/a": {"pid": 1', "[]", '{"write": {"/a": 3}}', "\0\0\0\0"])
def test_a_truncated_list_of_files_in_use_is_removed_and_reported(here, text):
    dvc_lock.RWLOCK.write_text(text)
    assert dvc_lock.blockers(["/a"], ["/a"]) == []
    assert "it was truncated when a DVC command was killed" in repair.repair_rwlock()
    assert not dvc_lock.RWLOCK.exists()


def test_files_are_in_use_by_living_processes_but_not_by_dead_ones(here, dead):
    with subprocess.Popen(["sleep", "60"]) as living:
        for pid, blocks in ((dead, False), (living.pid, True)):
            dvc_lock.RWLOCK.write_text(
                json.dumps({"write": {"/w/data/head": of(pid)}, "read": {"/w/data/images": [of(pid)]}})
            )
            assert bool(dvc_lock.blockers(["/w/data/head"], [])) is blocks
            assert bool(dvc_lock.blockers([], ["/w/data"])) is blocks
            assert not dvc_lock.blockers(["/w/data/images"], ["/w/data/model"])
            assert repair.repair_rwlock() is None
            assert dvc_lock.RWLOCK.exists() is blocks
        longer_ago = time.time() - 1000  # the number has been given to another process since
        os.utime(dvc_lock.RWLOCK, (longer_ago, longer_ago))
        assert not dvc_lock.blockers(["/w/data/head"], [])
        living.kill()


@pytest.mark.parametrize("end", range(0, len(LOCK), 7))
def test_a_dvc_lock_truncated_anywhere_is_restored(here, end):
    repair.LOCK.write_text(LOCK)
    assert repair.repair_lock() is None
    repair.LOCK.write_text(LOCK[:end])
    assert "restored the last intact version" in repair.repair_lock()
    assert repair.LOCK.read_text() == LOCK


def test_an_irreparable_dvc_lock_is_an_error_that_says_what_to_do(here):
    repair.LOCK.write_text(LOCK[:100])
    with pytest.raises(RootstockError, match=r"dvc\.lock is truncated.*git checkout dvc\.lock"):
        repair.repair_lock()
    merging = f"<<<<<<< HEAD\n{LOCK}=======\n{LOCK}>>>>>>> theirs\n"
    repair.LOCK.write_text(merging)
    with pytest.raises(RootstockError, match=r"dvc\.lock has merge conflict markers: keep one side"):
        repair.repair_lock()
    assert repair.LOCK.read_text() == merging


ADDED = """outs:
- md5: 0123456789abcdef0123456789abcdef.dir
  size: 12
  nfiles: 3
  hash: md5
  path: compare
"""


@pytest.mark.parametrize("name", ["compare", "history.parquet"])
@pytest.mark.parametrize("end", [*range(0, len(ADDED), 9), len(ADDED) - 1])
def test_a_truncated_dvc_file_of_comparison_or_history_is_removed_and_any_other_is_named(here, name, end):
    (here / "data").mkdir()
    ours, theirs = Path(f"data/{name}.dvc"), Path("photos.dvc")
    ours.write_text(ADDED)
    assert repair.repair_all() == []
    ours.write_text(ADDED[:end])
    assert f"{ours}: removed; it was truncated" in repair.repair_all()[0]
    assert not ours.exists()
    theirs.write_text(ADDED[:end])
    with pytest.raises(RootstockError, match=r"photos\.dvc is unreadable.*git checkout photos\.dvc.*add photos again"):
        repair.repair_all()
    assert theirs.read_text() == ADDED[:end]


@pytest.mark.parametrize("name", ["compare", "history.parquet"])
def test_a_dvc_file_with_merge_conflict_markers_is_left_to_a_person(here, name):
    (here / "data").mkdir()
    path = Path(f"data/{name}.dvc")
    merging = ADDED.replace("- md5", "<<<<<<< HEAD\n- md5", 1)
    path.write_text(merging)
    with pytest.raises(RootstockError, match=rf"data/{name}\.dvc has merge conflict markers: keep one side"):
        repair.repair_all()
    assert path.read_text() == merging


def test_a_dvc_command_may_be_the_first_one_in_a_fresh_clone(here):
    (here / ".rootstock").rmdir()
    (here / ".dvc/tmp").rmdir()
    (here / ".dvc/config").touch()
    said: list[str] = []
    repair.before_dvc(said.append)
    assert said == [] and (here / ".rootstock/swept").exists()


def test_a_truncated_run_log_loses_only_the_truncated_line(here):
    places.log_run("ingest", 1.0, 5, "first")
    cut = places.RUN_LOG.read_bytes()
    for end in range(len(cut)):
        places.RUN_LOG.write_bytes(cut + cut[:end])
        places.log_run("extract", 2.0, 5, "next")
        last = places.last_runs()
        assert (last["ingest"]["note"], last["extract"]["note"]) == ("first", "next")
    places.RUN_LOG.write_bytes(b'\0\xff\n3\n{"stage": "ingest"}\n' + cut)
    assert list(places.last_runs()) == ["ingest"]


NOTES = ["", "{", "[1]", "7", "{}", "\0\0", '{"before": 1, "after": 2, "written": 3}', '{"version": 9}']


@pytest.mark.parametrize("text", NOTES)
def test_a_damaged_note_of_work_under_way_is_an_error_that_says_what_removing_it_means(here, text):
    for note, carry_out in (
        (rollback.BEGUN, rollback.finish), (promotion.DECIDED, promotion.finish),
        (promotion.UNCOMMITTED, promotion.commit_what_waits),
    ):  # fmt: skip
        note.parent.mkdir(exist_ok=True)
        note.write_text(text)
        with pytest.raises(RootstockError, match=rf"^{re.escape(str(note))} is damaged.*remove the file"):
            carry_out()
        assert note.read_text() == text


@pytest.mark.parametrize("text", NOTES)
def test_a_damaged_note_of_the_values_of_a_run_changes_nothing(here, text):
    places.PARAMS.write_text("a person's\n")
    for note in (run_params.UNDER_WAY, run_params.WRITTEN):
        note.write_text(text)
    assert not run_params.restore()
    assert places.PARAMS.read_text() == "a person's\n"
    assert isinstance(run_params._written(), dict)


def cut_everything(workspace: Workspace) -> list[Path]:
    """Leave all that killed runs have been seen to leave; returns the files that are to be gone."""
    root = workspace.root
    workspace.status()  # a copy is another workspace to DVC: now it remembers files here
    code = "from tasks.bridge import repair; print(repair.state_folder())"
    known = list(Path(workspace.run("python", "-c", code).stdout.strip()).rglob("cache.db"))
    assert known
    for damaged in known:
        for journal in damaged.parent.glob("cache.db-*"):
            journal.unlink()
        damaged.write_bytes(damaged.read_bytes()[:5000])
    (root / ".dvc" / "tmp" / "rwlock").write_text("")
    (root / ".rootstock" / "runs.jsonl").open("a").write('{"stage": "ing')
    (root / "dvc.lock").write_bytes((root / "dvc.lock").read_bytes()[:8192])
    cache = next(path for path in (root / ".dvc" / "cache" / "files" / "md5").iterdir() if path.is_dir())
    left = [cache / ".0bq3VxcP6Qm2Zr4Yt5Uw.tmp", root / ".dvc" / "cache" / "files" / "md5" / ".aaaaaaaaaaaaaaaa.tmp",
            root / "data" / ".1bq3VxcP6Qm2Zr4Yt5Uw.tmp", root / "data" / "model" / ".2bq3VxcP6Qm2Zr4Yt5Uw.tmp",
            root / "data" / "head" / "head.json.tmp", root / ".rootstock" / "inbox.rejected.tmp"]  # fmt: skip
    for path in left:
        path.write_bytes(b"half")
    for folder in (root / "data" / "dataset.tmp", root / ".rootstock" / "champion.tmp"):
        folder.mkdir()
        (folder / "half").write_bytes(b"half")
        left.append(folder)
    return left


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("dvc", "repro"), id="repro"),
        pytest.param((sys.executable, "-m", "flows.pipeline"), id="flow", marks=pytest.mark.slow),
    ],
)
def test_the_next_command_repairs_everything_and_has_nothing_else_to_do(after_flow, command):
    before = after_flow.outputs()
    delivered = after_flow.root / "data" / "inbox" / "shed" / "moss" / "mine.tmp"
    delivered.parent.mkdir(parents=True)
    delivered.write_bytes(b"a person's")
    left = cut_everything(after_flow)
    said = after_flow.run(*command)
    assert not [path for path in left if path.exists()]
    assert delivered.exists()
    after_flow.run("rm", "-r", "data/inbox")
    assert after_flow.outputs() == before
    assert after_flow.status() == UP_TO_DATE
    for sentence in (
        "rwlock: removed; it was truncated",
        "dvc.lock: restored the last intact",
        "was damaged and is rebuilt",
    ):
        assert sentence in said.stdout + said.stderr
    assert "Traceback" not in said.stdout + said.stderr


def test_a_temporary_file_that_a_process_is_writing_is_kept(here):
    cache = here / "cache" / "files" / "md5" / "0a"
    cache.mkdir(parents=True)
    left, written = cache / ".left.tmp", cache / ".written.tmp"
    left.write_bytes(b"half")
    code = f"import time; file = open({str(written)!r}, 'wb'); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        repair.sweep_cache(here / "cache")
        assert (left.exists(), written.exists()) == (False, True)
        writer.kill()
    repair.sweep_cache(here / "cache")
    assert not written.exists()


def test_unchanged_folders_of_the_cache_are_not_scanned_again(here, monkeypatch):
    folders = [here / "cache" / "files" / "md5" / f"{number:02x}" for number in range(256)]
    for folder in folders:
        folder.mkdir(parents=True)
    repair.sweep_cache(here / "cache")
    (folders[7] / ".left.tmp").write_bytes(b"half")
    time.sleep(repair.UNTOUCHED_S)
    repair.sweep_cache(here / "cache")
    assert not (folders[7] / ".left.tmp").exists()
    time.sleep(repair.UNTOUCHED_S)
    repair.sweep_cache(here / "cache")
    looked = []
    changed = repair._changed
    monkeypatch.setattr(repair, "_changed", lambda *given: [looked.append(found) or found for found in changed(*given)])
    time.sleep(repair.UNTOUCHED_S)
    repair.sweep_cache(here / "cache")
    assert not looked


@pytest.mark.slow
def test_outputs_of_a_stage_killed_before_it_was_recorded_are_replaced_by_those_of_an_earlier_run(after_flow):
    before = after_flow.outputs()
    for stage, section, value in (("train_head", "head", {"l2": [3.0]}), ("backbone", "backbone", {"image_size": 33})):
        kept = (after_flow.root / "params.yaml").read_bytes()
        after_flow.set(**{section: value})
        after_flow.run(sys.executable, "-m", f"tasks.{stage}")  # and no more: killed
        (after_flow.root / "params.yaml").write_bytes(kept)
    assert "restored" in after_flow.flow() or after_flow.status() == UP_TO_DATE
    assert after_flow.outputs() == before
