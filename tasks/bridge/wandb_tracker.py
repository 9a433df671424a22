"""Track a run in Weights & Biases: parameters, metrics per epoch, artifacts, and the model's folder as an artifact.

Its own environment variables say where and how: WANDB_API_KEY (or `wandb login`), WANDB_PROJECT, WANDB_ENTITY,
WANDB_BASE_URL; with WANDB_MODE=offline everything is written to ./wandb, and `wandb sync` uploads it.
"""

import os
from itertools import groupby
from pathlib import Path

import wandb
from wandb.errors import Error as WandbError

from rootstock.system.causes import first_line
from rootstock.system.errors import RootstockError
from rootstock.system.files import write
from tasks.bridge.tracked_run import TrackedRun
from tasks.bridge.workspace import LOCAL

PROJECT = "rootstock"
TRACKED = LOCAL / "wandb.txt"  # fingerprints of the runs that were tracked from here, one per line
ANSWER_S = 20.0  # how long Weights & Biases may take to answer at first,
UPLOAD_S = 300.0  # and to take what is left to upload at the end
ID_DIGITS = 32  # of the fingerprint: a run tracked twice, from two workspaces, stays one


def track(run: TrackedRun) -> str:
    """Log a run, unless this workspace has done so before; return a sentence on where it is.

    Raises:
        RootstockError: there is no key, or the server does not answer or refuses.
    """
    tracked = TRACKED.read_text().split() if TRACKED.exists() else []
    if run.fingerprint in tracked:
        return "Weights & Biases has this run already."
    offline = os.environ.get("WANDB_MODE") == "offline"  # where nothing can be resumed
    try:
        with wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.name,
            id=run.fingerprint[:ID_DIGITS],
            resume=None if offline else "allow",
            config={**run.params, **run.tags},
            settings=_settings(),
        ) as own:
            _log(own, run)
            where = f"{Path(own.dir).parent}, offline: `wandb sync` uploads it" if own.offline else own.url
    except WandbError as error:
        raise RootstockError(f"{first_line(error)}.") from error
    finally:
        wandb.teardown()  # ends its process, which would otherwise live as long as this one
    if own.disabled:
        return "Weights & Biases is disabled (WANDB_MODE), so nothing was tracked."
    write(TRACKED, "\n".join([*tracked, run.fingerprint]) + "\n")
    return f"Tracked in Weights & Biases: {where}."


def _settings() -> wandb.Settings:
    """Keep it quiet, brief, and to what is logged here: no source code, terminal output or machine statistics."""
    return wandb.Settings(
        init_timeout=ANSWER_S, finish_timeout=UPLOAD_S, finish_timeout_raises=True,
        silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True,
    )  # fmt: skip


def _log(own: wandb.Run, run: TrackedRun) -> None:
    own.define_metric("finetune/*", step_metric="epoch")
    for epoch, points in groupby(run.curves, key=lambda point: point.epoch):
        own.log({"epoch": epoch, **{point.name: point.value for point in points}})
    own.summary.update(dict(run.metrics))
    report = wandb.Artifact("report", "report")
    for path in run.artifacts:
        if path.is_dir():
            report.add_dir(str(path), name=path.name)
        else:
            report.add_file(str(path), name=path.name)
    own.log_artifact(report)
    model = wandb.Artifact("model", "model", metadata=dict(run.metrics))
    model.add_dir(str(run.model))
    own.log_artifact(model)
