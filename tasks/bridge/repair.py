"""DVC's own files, where a kill left them half written: mended before DVC reads them, and said.

DVC writes `dvc.lock` and `.dvc/tmp/rwlock` in place, and keeps what it knows of files in SQLite. Its lock is waited for
in here, too, since who mends must be alone. With versions.py and dvc_remote.py, what imports DVC.
"""

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
from dvc.config import Config
from dvc.fs import localfs
from dvc.lock import LockBase, LockError, make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_LOCK, SCHEMA
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from voluptuous import Invalid

from rootstock.system.errors import RootstockError
from rootstock.system.files import TEMPORARY, remove, write
from tasks.bridge import cancellation, workspace
from tasks.bridge.workspace import LOCAL, SAY_EVERY_S

log = logging.getLogger(__name__)
LOCK = Path("dvc.lock")
WHOLE = LOCAL / "dvc.lock"  # as it was when it was last seen whole
TMP = Path(".dvc/tmp")
HELD, BUSY = TMP / "lock", TMP / "rwlock"
SWEPT = LOCAL / "swept"  # its time: when the cache was last looked through for temporary files
DVC_WAIT_S = 3600.0  # a `dvc push` holds the lock until all is sent; what a run has computed is worth the wait
UNTOUCHED_S = 2.0  # a file that is being copied changes all the time
CONFLICT = b"<<<<<<< "


def take(lock: LockBase, say: Callable[[str], None] = log.warning) -> None:
    """Take DVC's lock of the workspace, waiting for other DVC commands.

    Raises:
        RootstockError: one has held it for an hour.
    """

    def taken() -> bool:
        if workspace.dvc_is_at_work():  # DVC itself would try for three seconds, and cannot be stopped meanwhile
            return False
        try:
            lock.lock()
        except LockError:
            return False
        return True

    wait_until(taken, lambda: f"DVC's lock is held by {_holder()}", say)


def wait_until(ready: Callable[[], bool], why: Callable[[], str], say: Callable[[str], None]) -> None:
    """Look again and again, say every minute what is waited for, and give up after an hour.

    Raises:
        RootstockError: it is not ready.
        Stopped: the run is to end.
    """
    began, said = time.monotonic(), -SAY_EVERY_S
    while not ready():
        waited = time.monotonic() - began
        if waited > DVC_WAIT_S:
            raise RootstockError(f"{why()}, and has been for {waited / 60:.0f} minutes; end it, and run again.")
        if waited - said >= SAY_EVERY_S:
            say(f"{why()}; this run goes on when that has ended")
            said = waited
        cancellation.pause(0.2)


def _holder() -> str:
    """Say which process holds DVC's lock; that of `core.hardlink_lock` names none, and outlives the process."""
    with suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int(HELD.read_text()))
        return f"process {process.pid} ({' '.join(process.cmdline()[-3:])})"
    return f"another process (if no DVC command is at work, one was killed, and {HELD} can be removed)"


def blockers(read: Iterable[str], write_to: Iterable[str]) -> list[str]:
    """Name the DVC commands, of living processes, that read or write what a stage is about to write or read."""
    try:
        busy = SCHEMA(json.loads(BUSY.read_bytes()))
    except (OSError, ValueError, Invalid):  # none, or cut by a kill: mend_busy removes it
        return []
    reading, writing = list(read), list(write_to)
    asked = [(busy.get("write", {}), [*reading, *writing]), (busy.get("read", {}), writing)]
    found = {}
    for entries, wanted in asked:
        for path, infos in entries.items():
            if any(localfs.overlaps(path, each) for each in wanted):
                for info in infos if isinstance(infos, list) else [infos]:
                    found[info["pid"]] = f"process {info['pid']} ({info['cmd']})"
    return [found[pid] for pid in found if pid != os.getpid() and _wrote(pid)]


def _wrote(pid: int) -> bool:
    """Whether a process lives that can have written the file: a younger one was only given the number."""
    with suppress(psutil.NoSuchProcess, OSError):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= BUSY.stat().st_mtime
    return False


def mend() -> list[str]:
    """Mend what a killed DVC left half written; for who holds DVC's lock. Says what was done.

    Raises:
        RootstockError: only a person can.
    """
    return [said for said in (mend_busy(), mend_lock(), *map(mend_added, _added())) if said]


def before_dvc(say: Callable[[str], None]) -> None:
    """Make a command of DVC find its lock free, and its files whole.

    Raises:
        RootstockError: another command has been at work for an hour, or left what only a person can mend.
    """
    TMP.mkdir(exist_ok=True)
    config = Config(".dvc")
    lock = make_lock(str(HELD), tmp_dir=str(TMP), hardlink_lock=config["core"].get("hardlink_lock", False))
    take(lock, say)
    try:
        for said in [*mend(), mend_state()]:
            if said:
                say(said)
        sweep_cache(Path(config["cache"].get("dir") or ".dvc/cache"))
    finally:
        lock.unlock()


def mend_busy() -> str | None:
    """Remove the list of what DVC commands read and write, where it cannot be read or names dead ones alone."""
    if not BUSY.exists():
        return None
    with make_lock(str(TMP / RWLOCK_LOCK)):
        try:
            busy = SCHEMA(json.loads(BUSY.read_bytes()))
        except (ValueError, Invalid):
            BUSY.unlink()
            return f"{BUSY}: removed; it was cut when a DVC command was killed."
        infos = [info for entry in busy.get("read", {}).values() for info in entry] + list(
            busy.get("write", {}).values()
        )
        if infos and not any(_wrote(info["pid"]) for info in infos if info):
            BUSY.unlink()
    return None


def mend_lock() -> str | None:
    """Bring back dvc.lock as it was when it was last whole, where it is not.

    Raises:
        RootstockError: it has the marks of a merge, or there is none to bring back.
    """
    if not LOCK.exists():
        return None
    there, whole = LOCK.read_bytes(), WHOLE.read_bytes() if WHOLE.exists() else None
    if there == whole:
        return None
    if there.startswith(CONFLICT) or b"\n" + CONFLICT in there:
        raise RootstockError(
            f"{LOCK} has the marks of a merge: keep one side (`git checkout --ours {LOCK}`, or --theirs), "
            "and run again: what is missing is made."
        )
    begins_it = whole is not None and whole.startswith(there)  # cut at the end of a line, it can be read as well
    if _is_whole(there) and not begins_it:
        write(WHOLE, there)
        return None
    if whole is None or not _is_whole(whole):
        raise RootstockError(
            f"{LOCK} was cut when it was written, and there is no earlier one: bring it back "
            f"(`git checkout {LOCK}`), or remove it, and everything is looked at anew."
        )
    write(LOCK, whole)
    return f"{LOCK}: it was cut when it was written; it is as it was before that."


def _added() -> list[Path]:
    return [path for folder in (Path(), workspace.DATA) for path in folder.glob("*.dvc") if path.is_file()]


def mend_added(path: Path) -> str | None:
    """Remove what records a comparison's files, where that was cut: the next comparison writes it again.

    Raises:
        RootstockError: it records files of somebody else's.
    """
    text = path.read_bytes()
    try:
        whole = all(out["path"] for out in YAML(typ="safe").load(text)["outs"]) and text.endswith(b"\n")
    except (YAMLError, KeyError, TypeError, ValueError):
        whole = False
    if whole:
        return None
    what = path.with_suffix("")
    if what != workspace.COMPARE:
        raise RootstockError(
            f"{path} cannot be read, perhaps since `dvc add` was killed: bring it back (`git checkout {path}`), or "
            f"remove it, and add {what} again."
        )
    path.unlink()
    return (
        f"{path}: removed; it was cut when it was written. The next comparison writes it again (or `dvc add {what}`)."
    )


def note_lock() -> None:
    """Note that dvc.lock is whole: this process has just written it."""
    if LOCK.exists():
        write(WHOLE, LOCK.read_bytes())


def _is_whole(text: bytes) -> bool:
    """Whether DVC can read it, and its end is there: an empty one, of a line without end, is a cut one."""
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(text))
    except (YAMLError, Invalid, ValueError):
        return False
    return text.endswith(b"\n")


def mend_state() -> str | None:
    """Remove what DVC remembers of files, where SQLite cannot read it: DVC reads the files again."""
    damaged = [path for path in state_folder().rglob("*.db") if not _opens(path)]
    for path in damaged:
        remove(path.parent)
    return f"What DVC remembered of files ({damaged[0].parent}) was damaged, and is gathered anew." if damaged else None


def state_folder() -> Path:
    """Say where DVC remembers files of this workspace."""
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
    """Remove the temporary files of killed DVC commands; only folders of the cache that changed are looked into."""
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
    """Say for how many more seconds a file has to be left alone."""
    with suppress(OSError):
        return min(UNTOUCHED_S - (time.time() - path.stat().st_mtime), UNTOUCHED_S)
    return 0.0


def _changed(folder: Path, since: float, depth: int) -> Iterator[Path]:
    """Find the folders in which a name came or went; files are not looked at, a cache has a million."""
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
    """Find which files some process has open."""
    wanted, found = {str(path.resolve()): path for path in paths}, set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            found |= {wanted[file.path] for file in process.open_files() if file.path in wanted}
    return found
