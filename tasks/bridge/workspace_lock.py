"""What every flow that writes in a workspace starts with: lock it, then complete what a killed run left half done."""

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.bridge import interrupted, orchestration, reporting, run_params


@contextmanager
def locked_workspace(*, to_roll_back: bool = False) -> Iterator[reporting.RunLogger]:
    """Hold the workspace for this run alone; yields the run's logger.

    Args:
        to_roll_back: leave an interrupted rollback to the block, which completes it or rolls back to another version.

    Raises:
        RootstockError: any known error in the block, as a sentence.
    """
    with orchestration.reported_flow() as log, run_params.writing(log.info):
        interrupted.finish(log.info, rollbacks=not to_roll_back)
        yield log
