"""An earlier champion back in its place, with its data version and its parameters.

python -m flows.rollback               # the one before the present one
python -m flows.rollback --version 2
"""

import argparse
from dataclasses import dataclass
from typing import Any

from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from rootstock.system.errors import RootstockError
from tasks.bridge import artifacts, causes, terminal, versions
from tasks.bridge.orchestration import failed, worded
from tasks.bridge.rollback import bring_back as to_bring_back
from tasks.bridge.workspace_lock import locked_workspace

bring_back = task(name="bring back", task_run_name="bring back")(worded(to_bring_back))


@dataclass(frozen=True)
class BroughtBack:
    """Which champion is in place, and what is different now."""

    version: int
    changed: tuple[str, ...]

    @property
    def said(self) -> str:
        """Say it in words."""
        changed = "; ".join(self.changed) or "nothing else changed"
        return f"Champion v{self.version} is back. {changed[0].upper()}{changed[1:]}"


@flow(name="rollback")
def rollback(version: int | None = None) -> State[BroughtBack]:
    """Bring an earlier champion back, with its data version and its parameters.

    Args:
        version: Of the champion, as its tag says (champion@v2: 2); empty is the one before the present one.
    """
    try:
        with locked_workspace(to_roll_back=True) as log:
            versions.save_what_repro_left()
            back = BroughtBack(*bring_back.submit(version).result())
            kept = versions.save_experiment(flow_run.name)
    except RootstockError as error:
        return failed(error)
    artifacts.show_rollback(back.version, back.changed)
    log.info("%s. %s", back.said, kept.note)
    return Completed(message=back.said, data=back)


def main() -> None:
    """Bring one back; an error is one sentence, and exit status 1."""
    parser = argparse.ArgumentParser(description="Bring an earlier champion back.")
    parser.add_argument("--version", type=int, help="as its tag says (champion@v2: 2); the one before, if left out")
    terminal.add_verbose(parser)
    asked = parser.parse_args()
    with causes.entry_point("rollback", verbose=asked.verbose):
        versions.prepare()
        back: Any = rollback(asked.version)
        print(f"\nChampion v{back.version} is back.")
        print("\n".join(back.changed))


if __name__ == "__main__":
    main()
