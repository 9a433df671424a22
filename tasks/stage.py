"""What makes a function a stage: `python -m tasks.<stage>` for DVC, `.submit` for a Prefect flow.

Whoever has nothing to do should not wait: Prefect takes a second to import, so only `.submit` does; torch takes
three, so a stage imports its work when it runs.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rootstock.params import Params
from tasks import workspace
from tasks.doors import door

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

    from tasks.orchestration import Outcome

log = logging.getLogger(__name__)
HERE = "here"


@dataclass(frozen=True)
class Summary:
    """What a stage did: how many images it had to do with, a sentence, and whether its outputs changed."""

    images: int
    note: str
    changed: bool = True


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
        log.info("%s: started", self.name)
        start = time.perf_counter()
        summary = self.function(params)
        seconds = time.perf_counter() - start
        if summary.changed:
            workspace.log_run(self.name, seconds, summary.images, summary.note)
        log.info("%s: %s (%.1f s)", self.name, summary.note, seconds)
        return summary

    def submit(
        self, params: Params, wait_for: "Sequence[PrefectFuture[Outcome]]" = (), where: str = HERE
    ) -> "PrefectFuture[Outcome]":
        """Start the stage as a Prefect task of the flow that runs; what is up to date ends as Cached.

        Args:
            params: all parameters.
            wait_for: the stages whose outputs it reads.
            where: here, or the deployment that does the work on another machine.
        """
        # By name: what Prefect adds is no part of what a stage makes, so it is none of its dependencies in dvc.yaml.
        orchestration = import_module("tasks.orchestration")
        future: Any = orchestration.as_task(self).submit(params, where, wait_for=list(wait_for))
        return future  # type: ignore[no-any-return]

    def main(self) -> None:
        """Run the stage as DVC starts it; an error is one sentence, and exit status 1."""
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        with door(self.name):
            # DVC has reserved this stage's files by now. Waiting would keep them from the run that is waited for, so a
            # stage waits only by itself; `dvc repro` does before it begins (tasks/dvc_door.py).
            by_dvc = "DVC_STAGE" in os.environ
            with workspace.writing(queue=None if by_dvc else log.info):
                self(workspace.read_params())


def stage(function: Callable[[Params], Summary]) -> Stage:
    """Make a stage of a function that takes all parameters and says what it did."""
    return Stage(function)
