"""What a run that was killed had decided and not carried out: done before anything else is, by every door.

A rollback, a promotion, or putting a champion back replace data, lock and parameters together; between, the workspace
is of no version, and another run would build on that.
"""

from collections.abc import Callable

from tasks.bridge import champion, promotion, rollback


def finish(say: Callable[[str], None], *, rollbacks: bool = True) -> None:
    """Carry it out, rollbacks too or not, and say so."""
    champion.adopt_history()
    for said in (rollback.finish() if rollbacks else None, promotion.finish(), promotion.commit_what_waits()):
        if said:
            say(said)
