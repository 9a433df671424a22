"""The program `dvc` of the environment: DVC itself, in turn with the flows and after what a kill left is mended.

DVC knows of no flows. Started beside one, `dvc repro` would take files that the flow is about to record, and be refused
at its first stage; and a file that DVC was killed in the middle of writing ends every later command. So in a workspace
a command that writes there waits for its turn, every other one until DVC's lock is free, and what is cut is mended.
Everywhere else, and for everything else, this is DVC's own program (`python -m dvc` is that without any of this).
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tasks.bridge.workspace import HISTORY, LOCAL, MODEL

# DVC's names of commands that write where the flows do, `exp run` only where it does; and of those that take its lock.
WRITING = {"CmdRepro", "CmdExperimentsRun", "CmdExperimentsApply", "CmdExperimentsSave", "CmdCheckout", "CmdDataPull",
           "CmdCommit"}  # fmt: skip
ELSEWHERE = ("queue", "tmp_dir", "run_all", "dry")
LOCKING = WRITING | {"CmdDataStatus", "CmdDataPush", "CmdDataFetch", "CmdAdd", "CmdGC", "CmdDiff", "CmdRemove",
                     "CmdMove", "CmdUpdate", "CmdImport", "CmdImportUrl", "CmdExperimentsList",
                     "CmdExperimentsRemove", "CmdExperimentsPush", "CmdExperimentsPull",
                     "CmdExperimentsBranch"}  # fmt: skip


def main() -> int:
    """Run a command of DVC."""
    from dvc.cli import DvcParserError, main as dvc, parse_args

    try:
        asked = parse_args()
    except (DvcParserError, SystemExit):  # it says so itself, or shows its help
        return int(dvc() or 0)
    root = _workspace(Path(asked.cd)) if asked.func.__name__ in LOCKING else None
    with _ready(root, asked) if root else nullcontext():
        return int(dvc() or 0)


def _workspace(start: Path) -> Path | None:
    """Find the workspace of Rootstock around a folder."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / ".dvc").is_dir():
            return folder if (folder / "tasks" / "bridge" / "workspace.py").exists() else None
    return None


@contextmanager
def _ready(root: Path, asked: argparse.Namespace) -> Iterator[None]:
    """Wait for the command's turn, and mend what it is going to read."""
    from rootstock.system import entry_points
    from tasks.bridge import repair, workspace

    def say(sentence: str) -> None:
        print(f"dvc: {sentence.rstrip('.')}.", file=sys.stderr, flush=True)

    here = Path.cwd()
    os.chdir(root)
    writes = asked.func.__name__ in WRITING and not any(getattr(asked, key, False) for key in ELSEWHERE)
    with entry_points.entry_point("dvc"), workspace.writing(queue=say) if writes else nullcontext():
        repair.before_dvc(say)
        if writes:
            _finish(say)
        os.chdir(here)
        yield


def _finish(say: Callable[[str], None]) -> None:
    """Carry out what a run that was killed had begun; only who finds any pays for the imports."""
    notes = (LOCAL / name for name in ("rollback.json", "champion/decided.json", "uncommitted.json"))
    if any(path.exists() for path in (*notes, MODEL / HISTORY.name)):
        from tasks.bridge import interrupted

        interrupted.finish(say)


if __name__ == "__main__":
    sys.exit(main())
