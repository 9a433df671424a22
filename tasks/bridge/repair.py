"""Repair files of DVC that a kill left half written, before DVC reads them, and report it.

DVC writes `dvc.lock` and `.dvc/tmp/rwlock` in place, and keeps the state of files in SQLite.
"""

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
from dvc.config import Config
from dvc.fs import localfs
from dvc.lock import make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_LOCK, SCHEMA
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from voluptuous import Invalid

from rootstock.system.errors import RootstockError
from rootstock.system.files import TEMPORARY, remove, write
from tasks.bridge import workspace
from tasks.bridge.dvc_lock import HELD, RWLOCK, TMP, acquire, is_alive
from tasks.bridge.lock_file import LOCK
from tasks.bridge.workspace import LOCAL

log = logging.getLogger(__name__)
INTACT = LOCAL / "dvc.lock"  # the last intact version
SWEPT = LOCAL / "swept"  # its mtime: when the cache was last searched for temporary files
UNTOUCHED_S = 2.0  # a file that is being copied changes constantly
CONFLICT = b"<<<<<<< "
WRITTEN_BY = {workspace.COMPARE: "comparison", workspace.HISTORY: "retraining"}  # what is added to DVC by which run


def repair_all() -> list[str]:
    """Repair what a killed DVC left half written; the caller holds DVC's lock. Return a sentence per repair.

    Raises:
        RootstockError: only a person can repair it.
    """
    return [done for done in (repair_rwlock(), repair_lock(), *map(repair_dvc_file, _dvc_files())) if done]


def before_dvc(report: Callable[[str], None]) -> None:
    """Make sure that a DVC command finds its lock free and its files intact.

    Raises:
        RootstockError: another command has been running for an hour, or left damage that only a person can repair.
    """
    LOCAL.mkdir(exist_ok=True)
    TMP.mkdir(exist_ok=True)
    config = Config(".dvc")
    lock = make_lock(str(HELD), tmp_dir=str(TMP), hardlink_lock=config["core"].get("hardlink_lock", False))
    acquire(lock, report)
    try:
        for done in [*repair_all(), repair_state()]:
            if done:
                report(done)
        sweep_cache(Path(config["cache"].get("dir") or ".dvc/cache"))
    finally:
        lock.unlock()


def repair_rwlock() -> str | None:
    """Remove the list of paths in use by DVC commands if it is unreadable or names only dead processes."""
    if not RWLOCK.exists():
        return None
    with make_lock(str(TMP / RWLOCK_LOCK)):
        try:
            busy = SCHEMA(json.loads(RWLOCK.read_bytes()))
        except (ValueError, Invalid):
            RWLOCK.unlink()
            return f"{RWLOCK}: removed; it was truncated when a DVC command was killed."
        infos = [info for entry in busy.get("read", {}).values() for info in entry] + list(
            busy.get("write", {}).values()
        )
        if infos and not any(is_alive(info["pid"]) for info in infos if info):
            RWLOCK.unlink()
    return None


def repair_lock() -> str | None:
    """Restore the last intact dvc.lock if the current one is truncated.

    Raises:
        RootstockError: it has merge conflict markers, or there is no intact one.
    """
    if not LOCK.exists():
        return None
    current, intact = LOCK.read_bytes(), INTACT.read_bytes() if INTACT.exists() else None
    if current == intact:
        return None
    _check_merged(LOCK, current)
    is_prefix = intact is not None and intact.startswith(current)  # truncated at the end of a line, it parses as well
    if _is_intact(current) and not is_prefix:
        write(INTACT, current)
        return None
    if intact is None or not _is_intact(intact):
        raise RootstockError(
            f"{LOCK} is truncated, and there is no intact copy: restore it "
            f"(`git checkout {LOCK}`), or remove it, and every stage is checked again."
        )
    write(LOCK, intact)
    return f"{LOCK}: restored the last intact version; it was truncated when a process was killed."


def _check_merged(path: Path, text: bytes) -> None:
    """Check that git could merge a file.

    Raises:
        RootstockError: it has merge conflict markers.
    """
    if text.startswith(CONFLICT) or b"\n" + CONFLICT in text:
        raise RootstockError(
            f"{path} has merge conflict markers: keep one side (`git checkout --ours {path}`, or --theirs), "
            "and run again: missing outputs are computed."
        )


def _dvc_files() -> list[Path]:
    return [path for folder in (Path(), workspace.DATA) for path in folder.glob("*.dvc") if path.is_file()]


def repair_dvc_file(path: Path) -> str | None:
    """Remove the .dvc file of the comparison or of the history if it is truncated: whoever adds that writes it again.

    The history is added by a promotion, a rejection or a rollback; one that was killed is completed by the next run.

    Raises:
        RootstockError: it has merge conflict markers, or another .dvc file is unreadable.
    """
    text = path.read_bytes()
    _check_merged(path, text)
    try:
        intact = all(out["path"] for out in YAML(typ="safe").load(text)["outs"]) and text.endswith(b"\n")
    except (YAMLError, KeyError, TypeError, ValueError):
        intact = False
    if intact:
        return None
    what = path.with_suffix("")
    if what not in WRITTEN_BY:
        raise RootstockError(
            f"{path} is unreadable, perhaps because `dvc add` was killed: restore it (`git checkout {path}`), or "
            f"remove it and add {what} again."
        )
    path.unlink()
    return f"{path}: removed; it was truncated. The next {WRITTEN_BY[what]} writes it again (or `dvc add {what}`)."


def note_lock() -> None:
    """Keep a copy of dvc.lock, which this process has just written."""
    if LOCK.exists():
        write(INTACT, LOCK.read_bytes())


def _is_intact(text: bytes) -> bool:
    """Whether DVC can parse it and its last line is complete."""
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(text))
    except (YAMLError, Invalid, ValueError):
        return False
    return text.endswith(b"\n")


def repair_state() -> str | None:
    """Remove DVC's state databases that SQLite cannot read: DVC hashes the files again."""
    damaged = [path for path in state_folder().rglob("*.db") if not _opens(path)]
    for path in damaged:
        remove(path.parent)
    return f"DVC's state database ({damaged[0].parent}) was damaged and is rebuilt." if damaged else None


def state_folder() -> Path:
    """Return the folder of DVC's state databases of this workspace."""
    of = SimpleNamespace(config=Config(".dvc"), fs=localfs, root_dir=str(Path.cwd()), tmp_dir=str(TMP.resolve()))
    of._btime = Repo._btime.fget(of)
    return Path(Repo.site_cache_dir.fget(of))


def _opens(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path, timeout=1)) as db:
            for (table,) in db.execute("select name from sqlite_master where type = 'table'").fetchall():
                db.execute(f'select * from "{table}" limit 1').fetchall()  # noqa: S608
    except sqlite3.OperationalError:  # in use
        return True
    except sqlite3.DatabaseError:
        return False
    return True


def sweep_cache(cache: Path) -> None:
    """Remove temporary files of killed DVC commands from the cache folders that changed since the last time."""
    since, now = SWEPT.stat().st_mtime if SWEPT.exists() else 0.0, time.time()
    left = [path for folder in _changed(cache, since, 4) for path in folder.glob(f".*{TEMPORARY}")]
    if left and (young := max(_age_left(path) for path in left)) > 0:
        time.sleep(young)
    opened = _opened(left) if left else set()
    for path in left:
        if path not in opened and _age_left(path) <= 0:
            remove(path)
    if not any(path.exists() for path in left):
        SWEPT.touch()
        os.utime(SWEPT, (now - UNTOUCHED_S, now - UNTOUCHED_S))


def _age_left(path: Path) -> float:
    """Return for how many more seconds a file must be left alone."""
    with suppress(OSError):
        return min(UNTOUCHED_S - (time.time() - path.stat().st_mtime), UNTOUCHED_S)
    return 0.0


def _changed(folder: Path, since: float, depth: int) -> Iterator[Path]:
    """Yield the folders that gained or lost an entry; a cache may have a million files, so files are not checked."""
    if not folder.is_dir():
        return
    if folder.stat().st_mtime >= since:
        yield folder
    if depth > 1:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _changed(Path(entry.path), since, depth - 1)


def _opened(paths: list[Path]) -> set[Path]:
    """Return the files that a process has open."""
    wanted, found = {str(path.resolve()): path for path in paths}, set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            found |= {wanted[file.path] for file in process.open_files() if file.path in wanted}
    return found
