"""Roll back to an earlier champion, with its data version and parameters.

python -m flows.rollback               # the one before the current champion
python -m flows.rollback --version 2
"""

import argparse
from dataclasses import dataclass
from typing import Any

from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from rootstock.system.entry_points import add_verbose
from rootstock.system.errors import RootstockError
from tasks.bridge import artifacts, causes, experiments, versions
from tasks.bridge.orchestration import failed, reported_task
from tasks.bridge.rollback import roll_back
from tasks.bridge.workspace_lock import locked_workspace

restore_champion = task(name="restore champion", task_run_name="restore champion")(reported_task(roll_back))


@dataclass(frozen=True)
class RollbackResult:
    """The restored champion, and what changed."""

    version: int
    changed: tuple[str, ...]

    @property
    def summary(self) -> str:
        """Return it as a sentence."""
        changed = "; ".join(self.changed) or "nothing else changed"
        return f"Champion v{self.version} is restored. {changed[0].upper()}{changed[1:]}"


@flow(name="rollback")
def rollback(version: int | None = None) -> State[RollbackResult]:
    """Restore an earlier champion, with its data version and parameters.

    Args:
        version: Version of the champion, as in its tag (champion@v2: 2); empty: the one before the current champion.
    """
    try:
        with locked_workspace(to_roll_back=True) as log:
            experiments.save_what_repro_left()
            done = RollbackResult(*restore_champion.submit(version).result())
            kept = experiments.keep(flow_run.name)
    except RootstockError as error:
        return failed(error)
    artifacts.show_rollback(done.version, done.changed)
    log.info("%s. %s", done.summary, kept.note)
    return Completed(message=done.summary, data=done)


def main() -> None:
    """Roll back; an error is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description="Restore an earlier champion.")
    parser.add_argument("--version", type=int, help="as in its tag (champion@v2: 2); default: the one before this one")
    add_verbose(parser)
    asked = parser.parse_args()
    with causes.entry_point("rollback", verbose=asked.verbose):
        versions.prepare()
        done: Any = rollback(asked.version)
        print(f"\nChampion v{done.version} is restored.")
        print("\n".join(done.changed))


if __name__ == "__main__":
    main()
