"""A terminal to run a command on, with a width."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.workspace import ROOT


def run_on_terminal(
    command: Sequence[str], *, columns: int = 100, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> str:
    """Run a command on a terminal, and return what it wrote there."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40 if columns else 0, columns, 0, 0))
    written = b""
    with subprocess.Popen(command, cwd=cwd, env=env, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        try:
            while read := os.read(ours, 65536):
                written += read
        except OSError:  # Linux's way to say that all others have closed it
            pass
        os.close(ours)
    said = written.decode()
    assert process.returncode == 0, said
    return said
