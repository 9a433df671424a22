"""Wait for other DVC commands: for DVC's lock of the workspace, and for the paths that they read and write."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil
from dvc.fs import localfs
from dvc.lock import LockBase, LockError
from dvc.rwlock import SCHEMA
from voluptuous import Invalid

from rootstock.system.errors import RootstockError
from tasks.bridge import cancellation, workspace
from tasks.bridge.workspace import REPORT_EVERY_S

log = logging.getLogger(__name__)
TMP = Path(".dvc/tmp")
HELD, RWLOCK = TMP / "lock", TMP / "rwlock"
DVC_WAIT_S = 3600.0  # a `dvc push` holds the lock until it ends; the results of a run are worth the wait


def acquire(lock: LockBase, report: Callable[[str], None] = log.warning) -> None:
    """Acquire DVC's lock of the workspace, waiting for other DVC commands.

    Raises:
        RootstockError: another command has held it for an hour.
    """

    def acquired() -> bool:
        if workspace.dvc_is_at_work():  # DVC itself would block for three seconds
            return False
        try:
            lock.lock()
        except LockError:
            return False
        return True

    wait_until(acquired, lambda: f"DVC's lock is held by {_holder()}", report)


def wait_until(ready: Callable[[], bool], why: Callable[[], str], report: Callable[[str], None]) -> None:
    """Poll a condition, report every minute what is waited for, and give up after an hour.

    Raises:
        RootstockError: the condition is still false.
        Stopped: the run was cancelled.
    """
    began, reported = time.monotonic(), -REPORT_EVERY_S
    while not ready():
        waited = time.monotonic() - began
        if waited > DVC_WAIT_S:
            raise RootstockError(f"{why()}, and has been for {waited / 60:.0f} minutes; end it, and run again.")
        if waited - reported >= REPORT_EVERY_S:
            report(f"{why()}; this run continues when that has ended")
            reported = waited
        cancellation.pause(0.2)


def _holder() -> str:
    """Describe the process that holds DVC's lock; with `core.hardlink_lock` it is unknown and may be dead."""
    with suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int(HELD.read_text()))
        return f"process {process.pid} ({' '.join(process.cmdline()[-3:])})"
    return f"another process (if no DVC command is running, one was killed, and {HELD} can be removed)"


def blockers(read: Iterable[str], write_to: Iterable[str]) -> list[str]:
    """Describe the running DVC commands that read or write paths which a stage is about to write or read."""
    try:
        busy = SCHEMA(json.loads(RWLOCK.read_bytes()))
    except (OSError, ValueError, Invalid):  # none, or truncated by a kill: repair_rwlock removes it
        return []
    reading, writing = list(read), list(write_to)
    asked = [(busy.get("write", {}), [*reading, *writing]), (busy.get("read", {}), writing)]
    found = {}
    for entries, wanted in asked:
        for path, infos in entries.items():
            if any(localfs.overlaps(path, each) for each in wanted):
                for info in infos if isinstance(infos, list) else [infos]:
                    found[info["pid"]] = f"process {info['pid']} ({info['cmd']})"
    return [found[pid] for pid in found if pid != os.getpid() and is_alive(pid)]


def is_alive(pid: int) -> bool:
    """Whether a process that `RWLOCK` names is alive, and older than the file: a younger one only reuses the id."""
    with suppress(psutil.NoSuchProcess, OSError):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= RWLOCK.stat().st_mtime
    return False
