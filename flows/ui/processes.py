"""Start and stop the child processes of `make ui`, which leave nothing behind even if it is killed."""

import json
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from rootstock.system import files
from tasks.bridge import child_process, connection

STARTED = "started.json"
STOP_S = 15


@dataclass(frozen=True)
class Child:
    """A child process with its log."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def last_error(self) -> str:
        """Return the error that its log ends with, or the last lines of the log."""
        lines = self.log.read_text(errors="replace").splitlines()
        stacks = [number for number, line in enumerate(lines) if "Traceback (most recent call last)" in line]
        if stacks and (raised := [line for line in lines[stacks[-1] + 1 :] if line and not line.startswith(" ")]):
            return raised[0]
        return "\n".join(lines[-20:])


def start(name: str, module: list[str], env: Mapping[str, str], logs: Path) -> Child:
    """Start a Python module in its own session, so that Ctrl-C reaches only this process.

    The child ends with this process. That takes a moment, so its id is also noted in the folder of the logs.
    """
    connection.private_folder(logs)
    path = logs / f"{name}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            child_process.command(*module),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    born = {child.pid: child.create_time() for child in psutil.Process().children()}
    files.write(logs / STARTED, json.dumps(born))
    return Child(name, process, path)


def stop(*children: Child) -> None:
    """Stop processes and their descendants; a worker's runs are in sessions of their own."""
    _end(process for child in children if not child.has_ended and (process := _find(child.process.pid)))
    for child in children:
        child.process.wait()


def stop_left_behind(logs: Path) -> bool:
    """Stop the children that a killed process had noted; return whether there were any."""
    try:
        born = {int(pid): float(at) for pid, at in json.loads((logs / STARTED).read_text()).items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):  # or not our note: end nothing by guess
        return False
    left = [process for pid, at in born.items() if (process := _find(pid)) and process.create_time() == at]
    _end(left)
    return bool(left)


def _find(pid: int) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess, ValueError, OverflowError):  # the latter for impossible ids
        return psutil.Process(pid)
    return None


def _end(processes: Iterable[psutil.Process]) -> None:
    family = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            family += [*process.children(recursive=True), process]
            process.terminate()
    _, left = psutil.wait_procs(family, timeout=STOP_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
