"""What a tracker is told of a run: all of it is read from what the stages have written, so that no stage depends on it.

Names of metrics are grouped by a slash, as MLflow and Weights & Biases show them; those measured on test images say so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from rootstock.system.files import read_json, reading, sha256
from tasks.bridge import git, lock_file
from tasks.bridge.experiments import has_commits
from tasks.bridge.lock_file import LOCK
from tasks.bridge.workspace import MODEL, PARAMS, REPORT

FINGERPRINT = "rootstock.fingerprint"
CURVES = ("train_loss", "val_loss", "val_accuracy")  # columns of plots/history.csv, one row per epoch
REPORTED = ("report.html", "metrics.json", "validation.json", "test.json", "timings.json", "plots")


@dataclass(frozen=True)
class Point:
    """A metric at an epoch of fine-tuning, counted from 1 over all of its stages."""

    name: str
    epoch: int
    value: float


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers show it.

    Args:
        name: of its DVC experiment, which is that of the flow run.
        params: values by dotted key, as the stages ran with them; a list is one value.
        metrics: final figures: validation/accuracy, test/accuracy, ...
        curves: figures of each epoch of fine-tuning; empty if nothing was fine-tuned.
        tags: fingerprint, winner, git commit, data version, and what the flow adds.
        artifacts: files and folders to upload.
        model: folder of the winner.
    """

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    curves: tuple[Point, ...]
    tags: Mapping[str, str]
    artifacts: tuple[Path, ...]
    model: Path = field(default=MODEL)

    @property
    def fingerprint(self) -> str:
        """Return the digest of dvc.lock: two runs with the same code, parameters, data and results share it."""
        return self.tags[FINGERPRINT]


def read_run(name: str, tags: Mapping[str, str]) -> TrackedRun:
    """Read the results of the workspace, which must be those that dvc.lock records.

    Args:
        name: of the run.
        tags: to be added, for instance the decision about a challenger.

    Raises:
        DamagedError: a file is missing, damaged or not in the expected format.
    """
    with reading(LOCK):
        stages = lock_file.stages_in(LOCK.read_bytes())
    with reading(REPORT / "metrics.json"):
        winner = str(read_json(REPORT / "metrics.json")["winner"])
    validation, test = (read_json(REPORT / file) for file in ("validation.json", "test.json"))
    with reading(REPORT / "validation.json"):
        metrics = _figures("validation", validation[winner])
        for model, figures in validation.items():
            metrics |= _figures(f"validation_{model}", figures)
    with reading(REPORT / "test.json"):
        metrics |= _figures("test", test)
    own = {FINGERPRINT: sha256(LOCK), "winner": winner, "data_version": lock_file.data_version(stages)}
    commit = {"git_commit": git.head()} if has_commits(Path()) else {}
    return TrackedRun(
        name=name,
        params=lock_file.params_of(stages),
        metrics=metrics,
        curves=_read_curves(REPORT / "plots" / "history.csv"),
        tags={**own, **commit, **tags},
        artifacts=(*(REPORT / name for name in REPORTED), PARAMS, LOCK),
    )


def _figures(prefix: str, figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the overall figures of a model with the ends of their intervals, if any, and the number of images."""
    found = {f"{prefix}/images": float(figures["images"])}
    for name, figure in figures.items():
        if isinstance(figure, dict) and "value" in figure:
            found[f"{prefix}/{name}"] = float(figure["value"])
            found |= {f"{prefix}/{name}_{end}": float(figure[end]) for end in ("low", "high") if end in figure}
    return found


def _read_curves(path: Path) -> tuple[Point, ...]:
    with reading(path):
        table = pd.read_csv(path)
        rows = table[["step", *CURVES]].itertuples(index=False)
        points = (
            Point(f"finetune/{name}", int(epoch), float(value))
            for epoch, *values in rows
            for name, value in zip(CURVES, values, strict=True)
        )
        return tuple(point for point in points if pd.notna(point.value))
