"""A process that ends when the one that started it has ended, in whatever way: killed ones leave nothing behind.

python -m tasks.bridge.child_process <pid of the one that starts it> <module> [argument ...]
"""

import os
import runpy
import sys
import threading
import time
from contextlib import suppress

import psutil

LOOK_S, END_S = 0.5, 5


def end_with(parent: int) -> None:
    """End this process, with all that it started, once its parent is not `parent` any more.

    The kernel's own signal for this (PR_SET_PDEATHSIG) comes when the *thread* ends that started a process, and reaches
    that process alone: a worker's runs are processes of their own.
    """

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        _end_started()
        os._exit(1)

    threading.Thread(target=look, name="end with parent", daemon=True).start()


def _end_started() -> None:
    started = psutil.Process().children(recursive=True)
    for process in started:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(started, timeout=END_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def command(*module: str) -> list[str]:
    """Give the command of a Python module that ends with this process."""
    return [sys.executable, "-m", "tasks.bridge.child_process", str(os.getpid()), *module]


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    sys.argv[:] = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
