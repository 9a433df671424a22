"""What every flow that writes in a workspace begins with: its turn, and what a killed run had begun carried out."""

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.bridge import given, orchestration, unfinished


@contextmanager
def turn(*, to_roll_back: bool = False) -> Iterator[orchestration.RunLogger]:
    """Be the only run that writes in this workspace; gives the run's log.

    Args:
        to_roll_back: a rollback that was killed is left to the block, which goes on with it or to another version.

    Raises:
        RootstockError: whatever others bring about in the block, in words.
    """
    with orchestration.flow_in_words() as log, given.writing(log.info):
        unfinished.finish(log.info, rollbacks=not to_roll_back)
        yield log
