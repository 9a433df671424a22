"""Complete what a killed run had decided but not carried out, before anything else is started.

A rollback, a promotion and a rejection replace data, lock file and parameters together. In between, the workspace is
of no version, and another run would build on that.
"""

from collections.abc import Callable

from tasks.bridge import champion, promotion, rollback


def finish(report: Callable[[str], None], *, rollbacks: bool = True) -> None:
    """Complete it, with or without rollbacks, and report each step in a sentence."""
    champion.adopt_history()
    for done in (rollback.finish() if rollbacks else None, promotion.finish(), promotion.commit_what_waits()):
        if done:
            report(done)
