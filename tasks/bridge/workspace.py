"""Where everything lies in a workspace, who may write in it, and what its runs took: the one list of paths."""

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from rootstock.config import params_file
from rootstock.config.params import Params
from rootstock.system import files
from rootstock.system.errors import DamagedError, ParamsError, RootstockError
from rootstock.system.files import TEMPORARY, write

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
HISTORY = DATA / "history.parquet"  # of champions
OUTPUTS = (IMAGES, DATASET, BACKBONE, FEATURES, HEAD, FINETUNED, MODEL, COMPARE)  # and REPORT's
TO_LABEL = REPORT / "to_label.csv"  # of this machine, too: the inbox is not under version control

LOCAL = Path(".rootstock")  # of this machine: neither git nor DVC sees it
CHECKPOINT = LOCAL / "finetune.pt"
RUN_LOG = LOCAL / "runs.jsonl"
LOCK = LOCAL / "lock"
DVC_LOCK = Path(".dvc/tmp/lock")
WRITER = LOCAL / "writer"  # who holds it
TRIED = LOCAL / "features"  # of backbones that were compared, and may be chosen
TRIED_BACKBONES = LOCAL / "backbones"
REPORTS = LOCAL / "reports"  # each run's, for the UI to link to

ROOT = "ROOTSTOCK_WORKSPACE"  # environment variables of a worker: which workspace its runs happen in,
REPORTS_URL = "ROOTSTOCK_REPORTS_URL"  # and where REPORTS is served
TURN = "ROOTSTOCK_TURN"  # of the processes of a run: which of them has the turn

SAY_EVERY_S, LOOK_S = 60.0, 0.5
TURN_WAIT_S = 24 * 3600.0  # longer than a training takes; what holds the turn lives, or it would be free


def read_params() -> Params:
    """Read params.yaml.

    Raises:
        ParamsError: it is at fault, or lacks what dvc.yaml names: DVC could not record the run.
    """
    params = params_file.load(PARAMS)
    params_file.check_complete(params, str(PARAMS))
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
    """Be the only run that writes in this workspace; what a killed one left in the middle of writing is removed.

    A stage that a run starts (`dvc repro`, see tasks/bridge/dvc_program.py) writes in that run's turn.

    Args:
        queue: called with a sentence when the run has to wait for another one; without it, it does not wait.

    Raises:
        RootstockError: another run is at it, and has been for a day.
    """
    _check_folders()
    LOCAL.mkdir(exist_ok=True)
    if _in_turn_of_a_parent():
        yield
        return
    with _turn(queue):
        sweep()
        yield


@contextmanager
def _turn(queue: Callable[[str], None] | None) -> Iterator[None]:
    lock, began, said = FileLock(LOCK), time.monotonic(), -SAY_EVERY_S
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            waited = time.monotonic() - began
            if not queue or waited > TURN_WAIT_S:
                raise RootstockError(f"{_other()}; wait for it to end, or stop it.") from None
            if waited - said >= SAY_EVERY_S:
                queue(f"{_other()}; this one goes on when that has ended")
                said = waited
            time.sleep(LOOK_S)
    try:
        write(WRITER, f"{os.getpid()} {' '.join(sys.argv)}")
        os.environ[TURN] = str(os.getpid())
        yield
    finally:
        os.environ.pop(TURN, None)
        WRITER.unlink(missing_ok=True)
        lock.release()


def has_turn() -> bool:
    """Whether this process is the one that writes in this workspace."""
    return os.environ.get(TURN) == str(os.getpid())


def _in_turn_of_a_parent() -> bool:
    """Whether a process that started this one, and still waits for it, has the turn."""
    holder = os.environ.get(TURN, "")
    return holder.isdecimal() and int(holder) in (parent.pid for parent in psutil.Process().parents())


def _other() -> str:
    """Say who is writing."""
    try:
        number, _, command = WRITER.read_text().partition(" ")
    except OSError:  # it has ended since, or has just begun
        return f"Another run is writing in {Path.cwd()}"
    return f"Another run is writing in {Path.cwd()} (process {number}: {command})"


def sweep() -> None:
    """Remove the temporary files that killed runs left here, DVC's too; for who has the turn."""
    if dvc_is_at_work():
        return
    for folder in (DATA, REPORT, LOCAL, *OUTPUTS):
        for left in folder.glob(f"*{TEMPORARY}"):
            files.remove(left)
    for folder in OUTPUTS:
        files.sweep(folder)


def dvc_is_at_work() -> bool:
    """Whether a DVC command, which knows of no turns, has its lock: it may be writing in data/."""
    try:
        with DVC_LOCK.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


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


def read_note(path: Path, *keys: str) -> dict[str, Any]:
    """Read what a run noted of what it was about to do, for whoever comes after it.

    Raises:
        RootstockError: it is not what was written.
    """
    try:
        note = files.read_json(path)
        for key in keys:
            note[key]
    except (DamagedError, KeyError) as error:
        raise RootstockError(
            f"{path} is damaged. A run that was killed noted there what it was about to do: remove the file, and that "
            "is not done."
        ) from error
    return note


def log_run(stage: str, seconds: float, images: int, note: str) -> None:
    """Add a stage's run to the log; durations are no data, so no output but the report's shows them."""
    LOCAL.mkdir(exist_ok=True)
    entry = {"stage": stage, "seconds": round(seconds, 2), "images": images, "note": note}
    line = json.dumps(entry, ensure_ascii=False) + "\n"
    descriptor = os.open(RUN_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:  # one write: two stages side by side do not mix their lines
        # A line that was cut is ended, or this one would be a part of it.
        os.write(descriptor, ("" if _ends_well() else "\n").encode() + line.encode())
    finally:
        os.close(descriptor)


def _ends_well() -> bool:
    with RUN_LOG.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def last_runs() -> dict[str, dict[str, Any]]:
    """Recall the last run of each stage on this machine; a line that a kill or a full disk cut is no run."""
    last = {}
    for line in RUN_LOG.read_bytes().splitlines() if RUN_LOG.exists() else []:
        try:
            entry = json.loads(line)
            last[str(entry["stage"])] = {"seconds": float(entry["seconds"]), "images": int(entry["images"]), **entry}
        except (ValueError, KeyError, TypeError):
            continue
    return last
