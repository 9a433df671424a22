"""What commands have in common, beside their errors (test_causes.py)."""

import subprocess
import sys

from tests.imports import ROOT

COMMAND = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 0, gc.get_count()[2]))  # what is registered first runs last
from rootstock.system.entry_points import entry_point
for name in ("one", "another"):
    with entry_point(name):
        print(name)
"""


def test_a_command_ends_without_a_last_search_for_garbage():
    done = subprocess.run([sys.executable, "-c", COMMAND], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["one", "another", "True", "0"]
