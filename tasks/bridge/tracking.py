"""Track the results of a workspace in MLflow or Weights & Biases, where `track` of params.yaml says so.

It happens after the stages, and reads what they have written: no stage depends on it, and no result. What is tracked
already is not tracked again; a run that could not be is tracked by the next one. A tracker that does not answer is a
warning: the results are here.
"""

import logging
import os
from collections.abc import Callable

from rootstock.config.params import TRACKERS, Track
from rootstock.system import causes
from rootstock.system.errors import RootstockError
from tasks.bridge import experiments
from tasks.bridge.lock_file import LOCK
from tasks.bridge.tracked_run import TrackedRun, read_run

log = logging.getLogger(__name__)
AGAIN = "The results are here; the next run tries again, and so does `python -m flows.track`."


def track(to: Track, name: str, **tags: str) -> str:
    """Track the results that dvc.lock records, unless they are tracked already.

    Whatever prevents it is a warning in the log, after a few seconds if it is a server that does not answer.

    Args:
        to: `track` of params.yaml.
        name: of the run.
        tags: to be added to it.

    Returns:
        A sentence on where the run is; "" if it is nowhere.
    """
    if to == "none":
        return ""
    try:
        return _tracker(to)(read_run(name, tags))
    except Exception as error:
        why = causes.describe(error)
        log.warning("Not tracked in %s: %s %s", TRACKERS[to], why or repr(error), AGAIN, exc_info=why is None)
        return ""


def track_finished(to: Track) -> str:
    """Track what `dvc repro` or `dvc exp run` left, under the name of its experiment.

    Raises:
        RootstockError: there is no result, or a stage is not up to date.
    """
    if to == "none":
        return ""
    if not LOCK.exists() or not experiments.is_up_to_date():
        raise RootstockError("Not every stage is up to date, so there is no result to track; run the pipeline first.")
    kept = experiments.find(LOCK)
    return track(to, (kept and kept.name) or experiments.name_after_repro())


def _tracker(to: Track) -> Callable[[TrackedRun], str]:
    """Import the library that is asked for; each takes seconds, and reads these variables meanwhile."""
    if to == "mlflow":
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from tasks.bridge import mlflow_tracker

        return mlflow_tracker.track
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    from tasks.bridge import wandb_tracker

    return wandb_tracker.track
