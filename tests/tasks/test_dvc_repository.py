"""What DVC shows while a flow uses it: nothing."""

import sys

from tests.terminal import run_on_terminal

ADD = """
from pathlib import Path
from tasks.bridge import versions
Path("data/compare").mkdir()
Path("data/compare/kept").touch()
versions.add(Path("data/compare"))
"""


def test_adding_to_dvc_draws_no_spinner_on_a_terminal(workspace):
    said = run_on_terminal([sys.executable, "-c", ADD], cwd=workspace.root, env=workspace.env)
    assert "graph" not in said and "\x1b[?25l" not in said  # which hides the cursor
    assert (workspace.root / "data" / "compare.dvc").exists()
