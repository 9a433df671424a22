"""Open the workspace's DVC repository, and hold the workspace, for one thread and one run at a time.

DVC's Python API beyond `dvc.api` may change: pyproject.toml pins its versions. Only this module, versions.py,
unused_versions.py, experiments.py, dvc_remote.py, dvc_lock.py, repair.py and dvc_program.py import it.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dvc.rwlock
from dvc.repo import Repo
from dvc.ui import ui

from tasks.bridge import cancellation, dvc_lock, git, repair, workspace

log = logging.getLogger(__name__)
# DVC's lock works between processes; stages of a flow are threads.
_thread_lock = threading.RLock()
_opened: list[Repo] = []
BARS = ("dvc.progress", "dvc_data.callbacks")  # their levels decide whether DVC draws progress bars


@contextmanager
def repository() -> Iterator[Repo]:
    """Open the workspace's DVC repository exclusively: one thread at a time, and no other DVC command running.

    Raises:
        RootstockError: another DVC command has been running for an hour, or left damage that only a person can repair.
    """
    with _thread_lock, _quiet():
        if _opened:
            yield _opened[-1]
            return
        with _open() as repo:
            dvc_lock.acquire(repo.lock)
            repo._lock_depth += 1  # tells DVC's own functions that the lock is held
            _opened.append(repo)
            try:
                for done in repair.repair_all():
                    log.warning("%s", done)
                yield repo
            finally:
                _opened.pop()
                repo._lock_depth -= 1
                if (
                    repo.lock.is_locked
                ):  # else it was lent to another command (`_paths_free`), and the run ended meanwhile
                    repo.lock.unlock()


def _open() -> Repo:
    try:
        return Repo()
    except sqlite3.DatabaseError:
        log.warning("%s", repair.repair_state())
        return Repo()


@contextmanager
def _paths_free(
    tmp_dir: str, fs: object, cmd: str, read: list[str], write: list[str], hardlink: bool
) -> Iterator[None]:
    """Wait until no other DVC command reads or writes some paths; replaces dvc.rwlock.rwlock.

    DVC's version writes a file in place, which a kill truncates, and fails without waiting. The caller holds DVC's
    lock, so no entry is needed; the lock is released while waiting, so that the other command can end.
    """
    if not _opened:  # the command `dvc` (tasks/bridge/dvc_program.py)
        with _dvc_rwlock(tmp_dir, fs, cmd, read, write, hardlink):
            yield
        return
    lock = _opened[-1].lock

    def free() -> bool:
        if not dvc_lock.blockers(read, write):
            return True
        lock.unlock()
        cancellation.pause(workspace.POLL_S)
        dvc_lock.acquire(lock)
        return False

    dvc_lock.wait_until(free, lambda: f"Files that this run needs are in use by {_blockers(read, write)}", log.warning)
    yield


def _blockers(read: list[str], write: list[str]) -> str:
    return ", ".join(dvc_lock.blockers(read, write)) or "another DVC command"


_dvc_rwlock = dvc.rwlock.rwlock
dvc.rwlock.rwlock = _paths_free


@contextmanager
def locked(report: Callable[[str], None]) -> Iterator[None]:
    """Hold the workspace for this run alone, and repair what a killed one left behind.

    Args:
        report: called with a sentence for each wait and each repair.

    Raises:
        RootstockError: another run takes too long, or left damage that only a person can repair.
    """
    with workspace.writing(queue=report):
        for done in [*git.heal(), git.left_by_dvc()]:
            if done:
                report(done)
        repair.before_dvc(report)
        yield


@contextmanager
def not_recording(timeout_s: float) -> Iterator[None]:
    """Wait until no stage is being recorded, up to a timeout."""
    held = _thread_lock.acquire(timeout=timeout_s)
    try:
        yield
    finally:
        if held:
            _thread_lock.release()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence DVC's progress bars, spinners and hints, which are meant for its own command line."""
    silenced = {logging.getLogger("dvc"): logging.ERROR}
    silenced |= {logging.getLogger(name): logging.CRITICAL for name in BARS}
    levels = {logger: logger.level for logger in silenced}
    for logger, level in silenced.items():
        logger.setLevel(level)
    was_quiet, ui.error_console.quiet = ui.error_console.quiet, True
    try:
        yield
    finally:
        ui.error_console.quiet = was_quiet
        for logger, level in levels.items():
            logger.setLevel(level)
