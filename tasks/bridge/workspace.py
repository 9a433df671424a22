"""All paths of a workspace, the lock of its only writer, and the log of its stage runs."""

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from rootstock.config import params_file
from rootstock.config.params import UNRECORDED, Params
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
TO_LABEL = REPORT / "to_label.csv"  # local too: the inbox is not under version control

LOCAL = Path(".rootstock")  # local: ignored by git and DVC
CHECKPOINT = LOCAL / "finetune.pt"
RUN_LOG = LOCAL / "runs.jsonl"
LOCK = LOCAL / "lock"
DVC_LOCK = Path(".dvc/tmp/lock")
WRITER = LOCAL / "writer"  # which process holds it
UNFINISHED = LOCAL / "unfinished"  # features of shards that a stopped extract was at (features/unfinished.py)
EVALUATED = LOCAL / "evaluated"  # of an evaluate that was stopped (evaluation/kept_features.py, kept_heads.py)
PASSES = LOCAL / "passes"  # over the features, of a train_head that was stopped (training/kept_passes.py)
PIXELS = LOCAL / "pixels"  # decoded images (images/pixel_store.py)
ACTIVATIONS = LOCAL / "activations"  # of frozen layers (training/frozen_layers.py)
TRIED = LOCAL / "features"  # of compared backbones, which may be chosen later
TRIED_BACKBONES = LOCAL / "backbones"
MEASURED = LOCAL / "measured.parquet"  # models measured on each test image (evaluation/measured_models.py)
DELIVERED = LOCAL / "delivered.json"  # the first model measured on each test image delivered (the same module)
WAITING = LOCAL / "waiting.parquet"  # answers of an undecided challenger (evaluation/earlier_challenger.py)
REPORTS = LOCAL / "reports"  # one per run, linked from the UI

ROOT = "ROOTSTOCK_WORKSPACE"  # environment variables of a worker: the workspace of its runs,
REPORTS_URL = "ROOTSTOCK_REPORTS_URL"  # and the address at which REPORTS is served
TURN = "ROOTSTOCK_TURN"  # id of the process that holds the lock, for its children

REPORT_EVERY_S, POLL_S = 60.0, 0.5
LOCK_WAIT_S = 24 * 3600.0  # longer than a training takes; a dead process holds no lock


def read_params() -> Params:
    """Read params.yaml.

    Raises:
        ParamsError: it is invalid, or lacks a key that dvc.yaml names, so that DVC could not record the run.
    """
    params = params_file.load(PARAMS)
    params_file.check_complete(params, str(PARAMS))
    for section in set(Params.model_fields) - UNRECORDED:
        if section not in params.model_fields_set:
            raise ParamsError(f"{PARAMS}: {section} is missing, and DVC records it; see docs/params.md.")
    for name, part in (("extract", params.extract), ("finetune", params.finetune)):
        for key, value in part.recipe().items():
            if key not in part.model_fields_set:
                default = json.dumps(value)  # as it may be written in the file
                raise ParamsError(f"{PARAMS}: {name}.{key} is missing, and DVC records it; its default is {default}.")
    return params


@contextmanager
def writing(queue: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock of this workspace's only writer; temporary files of killed runs are removed.

    A stage that a run starts (`dvc repro`, see tasks/bridge/dvc_program.py) writes under that run's lock.

    Args:
        queue: called with a sentence when the run has to wait for another one; None: do not wait.

    Raises:
        RootstockError: another run is writing, and has been for a day.
    """
    _check_folders()
    LOCAL.mkdir(exist_ok=True)
    if _parent_holds_lock():
        yield
        return
    with _locked(queue):
        sweep()
        yield


@contextmanager
def _locked(queue: Callable[[str], None] | None) -> Iterator[None]:
    lock, began, reported = FileLock(LOCK), time.monotonic(), -REPORT_EVERY_S
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            waited = time.monotonic() - began
            if not queue or waited > LOCK_WAIT_S:
                raise RootstockError(f"{_other()}; wait for it to end, or stop it.") from None
            if waited - reported >= REPORT_EVERY_S:
                queue(f"{_other()}; this one continues when that has ended")
                reported = waited
            time.sleep(POLL_S)
    try:
        write(WRITER, f"{os.getpid()} {' '.join(sys.argv)}")
        os.environ[TURN] = str(os.getpid())
        yield
    finally:
        os.environ.pop(TURN, None)
        WRITER.unlink(missing_ok=True)
        lock.release()


def holds_lock() -> bool:
    """Whether this process holds the lock of this workspace."""
    return os.environ.get(TURN) == str(os.getpid())


def _parent_holds_lock() -> bool:
    """Whether a parent process, which waits for this one, holds the lock."""
    holder = os.environ.get(TURN, "")
    return holder.isdecimal() and int(holder) in (parent.pid for parent in psutil.Process().parents())


def _other() -> str:
    """Describe the run that holds the lock."""
    try:
        number, _, command = WRITER.read_text().partition(" ")
    except OSError:  # it has just ended, or just started
        return f"Another run is writing in {Path.cwd()}"
    return f"Another run is writing in {Path.cwd()} (process {number}: {command})"


def sweep() -> None:
    """Remove temporary files of killed runs, including DVC's; the caller holds the lock."""
    if dvc_is_at_work():
        return
    for folder in (DATA, REPORT, LOCAL, *OUTPUTS):
        for left in folder.glob(f"*{TEMPORARY}"):
            files.remove(left)
    for folder in OUTPUTS:
        files.sweep(folder)


def dvc_is_at_work() -> bool:
    """Whether a DVC command, which does not take our lock, holds DVC's: it may be writing in data/."""
    try:
        with DVC_LOCK.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _check_folders() -> None:
    """Check that data/ is no link: git and DVC do not follow links.

    Raises:
        RootstockError: it is one.
    """
    for folder in (DATA, REPORT):
        if folder.is_symlink():
            raise RootstockError(
                f"{folder} is a link to {folder.readlink()}, and neither git nor DVC follows links. Make {folder} a "
                f"folder; {IMAGES}, {FEATURES} and .dvc/cache may be links to another disk."
            )


def read_note(path: Path, *keys: str) -> dict[str, Any]:
    """Read the note in which a killed run recorded what it was about to do.

    Raises:
        RootstockError: the note is damaged.
    """
    try:
        note = files.read_json(path)
        for key in keys:
            note[key]
    except (DamagedError, KeyError) as error:
        raise RootstockError(
            f"{path} is damaged. A killed run noted there what it was about to do: remove the file to skip that."
        ) from error
    return note


def log_run(stage: str, seconds: float, images: int, note: str, parts: Sequence[float] = ()) -> None:
    """Append a stage run, with the seconds of its parts, to the log; only the report shows durations."""
    LOCAL.mkdir(exist_ok=True)
    entry: dict[str, Any] = {"stage": stage, "seconds": round(seconds, 2), "images": images, "note": note}
    if parts:
        entry["parts"] = [round(part, 2) for part in parts]
    line = json.dumps(entry, ensure_ascii=False) + "\n"
    descriptor = os.open(RUN_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:  # one write: concurrent stages do not mix their lines
        # Complete a truncated line first, or this one would be appended to it.
        os.write(descriptor, ("" if _ends_with_newline() else "\n").encode() + line.encode())
    finally:
        os.close(descriptor)


def _ends_with_newline() -> bool:
    with RUN_LOG.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def last_runs() -> dict[str, dict[str, Any]]:
    """Return the last run of each stage on this machine, ignoring truncated lines."""
    last = {}
    for line in RUN_LOG.read_bytes().splitlines() if RUN_LOG.exists() else []:
        try:
            entry = json.loads(line)
            last[str(entry["stage"])] = {"seconds": float(entry["seconds"]), "images": int(entry["images"]), **entry}
        except (ValueError, KeyError, TypeError):
            continue
    return last
