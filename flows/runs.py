"""List runs and champions: version, when, accuracy on validation and test images, data version, and why.

    python -m flows.runs              # the last 20
    python -m flows.runs --last 100

Nothing runs, and nothing is waited for: a run in progress is listed when it has ended.
"""

import argparse
import shutil

from rootstock.system.entry_points import entry_point
from rootstock.system.errors import ParamsError

LAST = 20


def main() -> None:
    """List; an error is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description="List runs and champions.")
    parser.add_argument("--last", metavar="N", type=int, default=LAST, help=f"how many (default {LAST})")
    last = parser.parse_args().last
    with entry_point("runs"):
        if last < 1:
            raise ParamsError(f"--last is {last}; expected at least 1.")
        from tasks.bridge import run_list  # DVC takes a second to import

        runs = run_list.list_runs(last)
        if not runs:
            print("There are no runs yet: `python -m flows.pipeline` runs the first.")
            return
        print(run_list.format_runs(runs, shutil.get_terminal_size(fallback=(120, 24)).columns))


if __name__ == "__main__":
    main()
