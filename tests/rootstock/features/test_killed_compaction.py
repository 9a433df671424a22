"""Compaction that is killed at any operation loses nothing, and the next one completes it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rootstock.dataset import shards
from rootstock.features.compaction import waste
from rootstock.ingest import scan as scans
from tests.imports import ROOT
from tests.slow import slow
from tests.sparse_shards import NARROW, WIDE, Store

STEPS = (
    "shard", "features", "scan", "ledger begins", "ledger", "manifest begins", "manifest", "summary", "old features",
    "old shard",
)  # fmt: skip


class Killed(BaseException):
    pass


def killed() -> None:
    raise Killed


def facts(store: Store) -> tuple[dict[str, bytes], dict[str, str], dict[str, dict[str, bytes]]]:
    """What a compaction must not change: images by path, splits, features by key."""
    splits = store.data.ledger.set_index("image_id")["split"].to_dict()
    return store.pixels(), splits, {key: store.values(store.features / key) for key in (WIDE, NARROW)}


def check_mended(store: Store, before: tuple) -> None:
    """Compact once more, and compare the contents with those before."""
    pixels, splits, values = before
    store.compact()
    assert (store.pixels(), store.data.ledger.set_index("image_id")["split"].to_dict()) == (pixels, splits)
    assert waste(store.data).shards == ()
    for key, known in values.items():
        assert {path.stem for path in (store.features / key).iterdir()} == set(shards.names(store.images))
        assert store.values(store.features / key).items() <= known.items()
    assert set(store.data.ledger["shard"]) - {"unpacked"} == set(shards.names(store.images))
    state = store.state()
    assert not [name for name in state if ".tmp" in name or ".next" in name]
    assert not store.ingest().changed and store.state() == state


def die_at(monkeypatch, step: str, nth: int, die: Callable[[], object]) -> None:
    """Kill a compaction just before its nth operation."""
    seen = 0

    def counted(hit: bool) -> None:
        nonlocal seen
        seen += hit
        if hit and seen == nth:
            die()

    replace, unlink, forget = Path.replace, Path.unlink, scans.Scan.forget_packed_except

    def replacing(path: Path, target: Path) -> Path:
        place = "/".join(Path(target).parts[-3:])
        counted(
            {
                "shard": place.endswith(".tar"),
                "features": "features/" in place,
                "ledger begins": place.endswith("ledger.next"),
                "ledger": "ledger.parquet/" in place,
                "manifest begins": place.endswith("manifest.next"),
                "manifest": "manifest.parquet/" in place,
                "summary": place.endswith("summary.json"),
            }.get(step, False)
        )
        return replace(path, target)

    def unlinking(path: Path, missing_ok: bool = False) -> None:
        counted(
            {
                "old features": "features" in path.parts and path.suffix == ".parquet",
                "old shard": path.suffix == ".tar",
            }.get(step, False)
        )
        return unlink(path, missing_ok=missing_ok)

    def forgetting(self, names) -> None:
        counted(step == "scan")
        return forget(self, names)

    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(Path, "unlink", unlinking)
    monkeypatch.setattr(scans.Scan, "forget_packed_except", forgetting)


@pytest.mark.parametrize("nth", [1, *slow(2)])
@pytest.mark.parametrize("step", STEPS)
def test_a_compaction_killed_before_any_operation_loses_nothing(store, monkeypatch, step, nth):
    before = facts(store)
    with monkeypatch.context() as until_killed:
        die_at(until_killed, step, nth, killed)
        try:
            store.compact()
        except Killed:
            pass
        else:
            assert nth == 2  # the first there is
    store.ingest()
    assert store.pixels() == before[0]
    check_mended(store, before)


KILLED = """
import os, sys
from pathlib import Path
import pytest
from tests.rootstock.features.test_killed_compaction import STEPS, die_at
from tests.sparse_shards import Store

for step in STEPS:
    child = os.fork()
    if child == 0:
        die_at(pytest.MonkeyPatch(), step, 1, lambda: os._exit(9))
        Store(Path(sys.argv[1]) / step).compact()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, step
"""


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_that_the_next_compaction_cannot_repair(store, tmp_path):
    before = facts(store)
    for step in STEPS:
        shutil.copytree(store.root, tmp_path / "killed" / step)
    command = [sys.executable, "-c", KILLED, tmp_path / "killed"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=120)
    for step in STEPS:
        check_mended(Store(tmp_path / "killed" / step), before)
