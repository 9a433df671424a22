"""Where everything lies in a workspace, who may write in it, and what its runs took: the one list of paths."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rootstock import params_file
from rootstock.errors import ParamsError, RootstockError
from rootstock.params import Params

PARAMS = Path("params.yaml")

DATA = Path("data")
IMAGES = DATA / "images"
DATASET = DATA / "dataset"
BACKBONE = DATA / "backbone"
FEATURES = DATA / "features"
HEAD = DATA / "head"
FINETUNED = DATA / "finetuned"
MODEL = DATA / "model"
REPORT = DATA / "report"
COMPARE = DATA / "compare"
TO_LABEL = REPORT / "to_label.csv"  # of this machine, too: the inbox is not under version control

LOCAL = Path(".rootstock")  # of this machine: neither git nor DVC sees it
CHECKPOINT = LOCAL / "finetune.pt"
RUN_LOG = LOCAL / "runs.jsonl"
LOCK = LOCAL / "lock"
TRIED = LOCAL / "features"  # of backbones that were compared, and may be chosen
TRIED_BACKBONES = LOCAL / "backbones"
REPORTS = LOCAL / "reports"  # each run's, for the UI to link to

ROOT = "ROOTSTOCK_WORKSPACE"  # environment variables of a worker: which workspace its runs happen in,
REPORTS_URL = "ROOTSTOCK_REPORTS_URL"  # and where REPORTS is served


def read_params() -> Params:
    """Read params.yaml.

    Raises:
        ParamsError: it is at fault, or lacks what dvc.yaml names: DVC could not record the run.
    """
    params = params_file.load(PARAMS)
    params_file.check_whole(params, str(PARAMS))
    for section in set(Params.model_fields) - {"retrain", "compare"}:
        if section not in params.model_fields_set:
            raise ParamsError(f"{PARAMS}: {section} is missing, and DVC records it; see docs/params.md.")
    for name, part in (("extract", params.extract), ("finetune", params.finetune)):
        for key, value in part.recipe().items():
            if key not in part.model_fields_set:
                raise ParamsError(f"{PARAMS}: {name}.{key} is missing, and DVC records it; its default is {value!r}.")
    return params


@contextmanager
def writing(queue: Callable[[str], None] | None = None) -> Iterator[None]:
    """Be the only run that writes in this workspace.

    Args:
        queue: called with a sentence when the run has to wait for another one; without it, it does not wait.

    Raises:
        RootstockError: another run is at it.
    """
    _check_folders()
    LOCAL.mkdir(exist_ok=True)
    lock = FileLock(LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not queue:
            raise RootstockError(f"Another run is writing in {Path.cwd()}; wait for it to end, or stop it.") from None
        queue(f"Another run is writing in {Path.cwd()}; this one goes on when that has ended")
        lock.acquire(poll_interval=0.5)
    try:
        yield
    finally:
        lock.release()


def _check_folders() -> None:
    """Check that git and DVC see what lies in data/; they look behind no link.

    Raises:
        RootstockError: it is a link.
    """
    for folder in (DATA, REPORT):
        if folder.is_symlink():
            raise RootstockError(
                f"{folder} is a link to {folder.readlink()}, and neither git nor DVC looks behind one. Make {folder} a "
                f"folder, and links of {IMAGES}, {FEATURES} and .dvc/cache: these may lie on another disk."
            )


def log_run(stage: str, seconds: float, images: int, note: str) -> None:
    """Add a stage's run to the log; durations are no data, so no output but the report's shows them."""
    LOCAL.mkdir(exist_ok=True)
    entry = {"stage": stage, "seconds": round(seconds, 2), "images": images, "note": note}
    line = json.dumps(entry, ensure_ascii=False) + "\n"
    descriptor = os.open(RUN_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:  # one write: two stages side by side do not mix their lines
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def last_runs() -> dict[str, dict[str, Any]]:
    """Recall the last run of each stage on this machine."""
    lines = RUN_LOG.read_text().splitlines() if RUN_LOG.exists() else []
    return {entry["stage"]: entry for entry in map(json.loads, lines)}
