"""A child process that ends with its parent, however that ends: killed parents leave nothing behind.

python -m tasks.bridge.child_process <parent pid> <module> [argument ...]
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
    """End this process and all its children as soon as its parent is no longer `parent`.

    The kernel's own signal for this (PR_SET_PDEATHSIG) is sent when the *thread* that started a process ends, and only
    to that process: a worker's runs are processes of their own.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        _end_children()
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def _end_children() -> None:
    children = psutil.Process().children(recursive=True)
    for process in children:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(children, timeout=END_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def command(*module: str) -> list[str]:
    """Return the command that runs a Python module as a child that ends with this process."""
    return [sys.executable, "-m", "tasks.bridge.child_process", str(os.getpid()), *module]


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    sys.argv[:] = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
