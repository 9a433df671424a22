"""Kill a piece of work at each of its file operations: tests/power_cut.c, built here and preloaded.

The work is Python code; it is imported once in one process, and every trial is a fork of that.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HARNESS = """
import ctypes, json, os, sys, traceback
arm = ctypes.CDLL(None).power_cut_arm
exec(compile(sys.argv[1], "prepare", "exec"), globals())
for line in sys.stdin:
    task = json.loads(line)
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        os.dup2(2, 1)  # what the work prints is no answer
        os.chdir(task["root"])
        with open(task["tally"], "wb") as file:
            file.write(bytes(8))
        os.environ.update(POWER_CUT_ROOT=task["root"], POWER_CUT_TALLY=task["tally"], POWER_CUT_AT=str(task["at"]))
        arm()
        try:
            exec(compile(task["work"], "work", "exec"), globals())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    with open(task["tally"], "rb") as file:
        count = int.from_bytes(file.read(8), sys.byteorder)
    print(json.dumps([os.waitstatus_to_exitcode(status), count]), flush=True)
"""


@dataclass(frozen=True)
class Cut:
    """A process in which work can be killed."""

    process: subprocess.Popen
    tally: Path

    def run(self, work: str, root: Path, at: int = 0) -> tuple[int, int]:
        """Do the work in a folder, and kill it before its file operation `at`; returns exit status and operations."""
        task = {"work": work, "root": str(root), "at": at, "tally": str(self.tally)}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return tuple(json.loads(self.process.stdout.readline()))


@contextmanager
def power_cut(folder: Path, prepare: str, env: dict[str, str], code: Path) -> Iterator[Cut]:
    """Build the library, and start a process that has run `prepare` (imports, mostly) in a folder of code."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("there is no C compiler")
    library = folder / "power_cut.so"
    source = Path(__file__).with_name("power_cut.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    command = [sys.executable, "-u", "-c", HARNESS, prepare]
    env = env | {"LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, cwd=code, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Cut(process, folder / "tally")
        process.stdin.close()
