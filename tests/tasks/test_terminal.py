"""What a command shows on its terminal of all that is logged."""

import subprocess
import sys

LOG = """
import logging
from prefect._internal.concurrency import services
from prefect.logging.handlers import PrefectConsoleHandler
from tasks.bridge import terminal

terminal.show_lines(verbose=False)
handler = PrefectConsoleHandler()
for message in (
    "Still processing items: 1 items remaining...", "Task run failed with state: Failed(message='There is no v9.')",
    "Crash detected! Execution was aborted by an interrupt signal.", "The server does not answer.",
    "Crash detected! Execution was interrupted by an unexpected exception: ValueError: a bug",
):
    handler.handle(logging.LogRecord("APILogWorker", logging.WARNING, services.__file__, 1, message, None, None))
"""


def test_warnings_of_prefect_are_shown_but_not_how_a_run_ended_which_the_command_says():
    done = subprocess.run([sys.executable, "-c", LOG], capture_output=True, text=True, check=True)
    assert (done.stdout + done.stderr).splitlines() == [
        "warning: The server does not answer.",
        "warning: Crash detected! Execution was interrupted by an unexpected exception: ValueError: a bug",
    ]
