"""What makes a function a stage: `python -m tasks.<stage>` for DVC; for a Prefect flow, `submit` of orchestration.py.

Whoever has nothing to do should not wait: Prefect takes a second to import, so nothing here does; torch takes three, so
a stage imports its work when it runs.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rootstock.config.params import Params
from rootstock.system.entry_points import DETAIL, entry_point
from rootstock.system.parallel import rank
from tasks.bridge import workspace

log = logging.getLogger(__name__)
HERE = "here"


@dataclass(frozen=True)
class Summary:
    """What a stage did: how many images it had to do with, a sentence, and whether its outputs changed.

    `seconds` are those of its parts, of its epochs for instance, which the report shows beside what they brought.
    """

    images: int
    note: str
    changed: bool = True
    seconds: Sequence[float] = ()


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml; calling it does the work, here and now."""

    function: Callable[[Params], Summary]

    @property
    def name(self) -> str:
        """Name the stage, in dvc.yaml and in the Prefect UI."""
        return self.function.__name__

    def __call__(self, params: Params) -> Summary:
        """Do the work and log what it took."""
        start = time.perf_counter()
        summary = self.function(params)
        seconds = time.perf_counter() - start
        if summary.changed:
            workspace.log_run(self.name, seconds, summary.images, summary.note, summary.seconds)
        log.info("%s: %s (%.1f s)", self.name, summary.note, seconds, extra=DETAIL)  # a flow has its own line
        return summary

    def main(self) -> None:
        """Run the stage as DVC starts it; an error is one sentence, and exit status 1."""
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        with entry_point(self.name):
            # DVC has reserved this stage's files by now. Waiting would keep them from the run that is waited for, so a
            # stage waits only by itself; `dvc repro` does before it begins (tasks/bridge/dvc_program.py).
            by_dvc = "DVC_STAGE" in os.environ
            if rank() > 0:  # torchrun has started several; the first one has the workspace
                self(workspace.read_params())
                return
            with workspace.writing(queue=None if by_dvc else log.info):
                self(workspace.read_params())


def stage(function: Callable[[Params], Summary]) -> Stage:
    """Make a stage of a function that takes all parameters and says what it did."""
    return Stage(function)
