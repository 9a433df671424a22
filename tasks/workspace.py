"""Where everything lies in a workspace, who may write in it, and what its runs took: the one list of paths."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rootstock.errors import RootstockError

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

LOCAL = Path(".rootstock")  # of this machine: neither git nor DVC sees it
CHECKPOINT = LOCAL / "finetune.pt"
RUN_LOG = LOCAL / "runs.jsonl"
LOCK = LOCAL / "lock"


@contextmanager
def writing() -> Iterator[None]:
    """Be the only run that writes in this workspace.

    Raises:
        RootstockError: another one is at it.
    """
    LOCAL.mkdir(exist_ok=True)
    lock = FileLock(LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RootstockError(f"Another run is writing in {Path.cwd()}; wait for it to end, or stop it.") from None
    try:
        yield
    finally:
        lock.release()


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
