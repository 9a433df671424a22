"""The command `dvc` of the environment: DVC itself, taking turns with the flows and repairing what a kill left behind.

DVC does not know of the flows. Started during one, `dvc repro` would reserve files that the flow is about to record,
and fail at its first stage; and a file that DVC was writing when it was killed breaks every later command. So in a
workspace a command that writes waits for running flows, any other one for DVC's lock, and truncated files are repaired
first; what `dvc repro` or `dvc exp run` leaves is tracked as the results of a flow are. `dvc exp show` shows the
winner's metrics unless it is told which columns to show: with all parameters and dependencies there are a hundred.
Everywhere else this is DVC's own program (`python -m dvc` always is).
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tasks.bridge.workspace import HISTORY, LOCAL, MODEL

# DVC's classes of the commands that write where flows do (`exp run` not always), and of those that take its lock.
WRITING = {"CmdRepro", "CmdExperimentsRun", "CmdExperimentsApply", "CmdExperimentsSave", "CmdCheckout", "CmdDataPull",
           "CmdCommit"}  # fmt: skip
TRACKED = {"CmdRepro", "CmdExperimentsRun"}  # which leave the results of a run
ELSEWHERE = ("queue", "tmp_dir", "run_all", "dry")
LOCKING = WRITING | {"CmdDataStatus", "CmdDataPush", "CmdDataFetch", "CmdAdd", "CmdGC", "CmdDiff", "CmdRemove",
                     "CmdMove", "CmdUpdate", "CmdImport", "CmdImportUrl", "CmdExperimentsList",
                     "CmdExperimentsRemove", "CmdExperimentsPush", "CmdExperimentsPull",
                     "CmdExperimentsBranch"}  # fmt: skip
COLUMN_OPTIONS = ("drop", "only_changed", "param_deps", "json", "csv", "markdown")
# Columns: dependencies, parameters (names of metrics have no dot), and metrics beside the winner's accuracy and log
# loss (some of earlier versions), so that 120 characters hold the longest names that Prefect gives to runs.
LEFT_OUT = r"(rootstock|tasks|data)/|.*\.|(seed|track|balanced|head|finetuned)$"  # matched from the start


def main() -> int:
    """Run a command of DVC."""
    from dvc.cli import DvcParserError, main as dvc, parse_args

    try:
        asked = parse_args()
    except (DvcParserError, SystemExit):  # DVC prints the error or its help itself
        return int(dvc() or 0)
    if asked.func.__name__ == "CmdExperimentsShow" and _workspace(Path(asked.cd)):
        return int(dvc([*sys.argv[1:], *_columns(asked)]) or 0)
    root = _workspace(Path(asked.cd)) if asked.func.__name__ in LOCKING else None
    with _ready(root, asked) if root else nullcontext():
        status = int(dvc() or 0)
        if root and status == 0 and asked.func.__name__ in TRACKED and _writes(asked):
            _track(root)
        return status


def _columns(asked: argparse.Namespace) -> list[str]:
    """Return options that leave the winner's metrics and what --keep names, unless others say what to show."""
    if any(getattr(asked, option, None) for option in COLUMN_OPTIONS):
        return []
    if not asked.keep:
        print("dvc: most columns are left out; --keep shows more, e.g. --keep head.l2", file=sys.stderr)
    return ["--drop", LEFT_OUT]


def _workspace(start: Path) -> Path | None:
    """Return the Rootstock workspace that contains a folder, if any."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / ".dvc").is_dir():
            return folder if (folder / "tasks" / "bridge" / "workspace.py").exists() else None
    return None


@contextmanager
def _ready(root: Path, asked: argparse.Namespace) -> Iterator[None]:
    """Wait until the command may run, and repair what it is going to read."""
    from rootstock.system import entry_points
    from tasks.bridge import repair, workspace

    here = Path.cwd()
    os.chdir(root)
    writes = _writes(asked)
    with entry_points.entry_point("dvc"), workspace.writing(queue=_report) if writes else nullcontext():
        repair.before_dvc(_report)
        if writes:
            _finish(_report)
        os.chdir(here)
        yield


def _writes(asked: argparse.Namespace) -> bool:
    """Whether the command writes in this workspace."""
    return asked.func.__name__ in WRITING and not any(getattr(asked, key, False) for key in ELSEWHERE)


def _report(sentence: str) -> None:
    print(f"dvc: {sentence.rstrip('.')}.", file=sys.stderr, flush=True)


def _track(root: Path) -> None:
    """Track what the command left, if params.yaml says where and every stage is up to date."""
    from rootstock.system.errors import RootstockError
    from tasks.bridge import workspace

    here = Path.cwd()
    os.chdir(root)
    if (to := workspace.read_params().track) != "none":
        from tasks.bridge import tracking  # and pandas

        try:
            tracked = tracking.track_finished(to)
        except RootstockError as error:  # for instance after `dvc repro train_head`
            tracked = f"not tracked: {error}"
        if tracked:
            _report(tracked)
    os.chdir(here)


def _finish(report: Callable[[str], None]) -> None:
    """Complete what a killed run left half done; the slow imports happen only if there is something."""
    notes = (LOCAL / name for name in ("rollback.json", "champion/decided.json", "uncommitted.json"))
    if any(path.exists() for path in (*notes, MODEL / HISTORY.name)):
        from tasks.bridge import interrupted

        interrupted.finish(report)


if __name__ == "__main__":
    sys.exit(main())
