"""What fine-tuning leaves in its folder: the network, and the course of its training as tables."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from rootstock.system.files import damaged, read_json, reading, replacing_folder, sha256, verify, write
from rootstock.training import averaging, classifier, epochs
from rootstock.training.averaging import Average
from rootstock.training.checkpoints import Epoch, RatePoint
from rootstock.training.classifier import Classifier

HISTORY, AVERAGES, RATES = "history.parquet", "averages.parquet", "learning_rates.parquet"
DESCRIPTION = "finetuned.json"
Row = TypeVar("Row")


@dataclass(frozen=True)
class Course:
    """What happened: epochs, averages of weights tried after the last, range tests, seconds of each epoch."""

    history: list[Epoch] = field(default_factory=list)
    averages: list[Average] = field(default_factory=list)
    rates: list[RatePoint] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list, compare=False)  # in no file: another run takes others

    @property
    def val_accuracy(self) -> float:
        """Return the validation accuracy of the weights that fine-tuning ended with."""
        return (averaging.chosen_of(self.averages) or epochs.best_of(self.history)).val_accuracy


def save_course(model: Classifier | None, course: Course, folder: Path) -> None:
    """Save a fine-tuned network, the course of its training, and the digests of all files (finetuned.json).

    Without epochs there is no such network, and only the empty history is saved.
    """
    with replacing_folder(folder) as temporary:
        if model and course.history:
            classifier.save(model, temporary / classifier.WEIGHTS)
        as_table(course.history, Epoch).to_parquet(temporary / HISTORY, index=False)
        as_table(course.averages, Average).to_parquet(temporary / AVERAGES, index=False)
        as_table(course.rates, RatePoint).to_parquet(temporary / RATES, index=False)
        digests = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        write(temporary / DESCRIPTION, json.dumps({"digests": digests}, indent=2) + "\n")


def load_course(folder: Path) -> Course:
    """Read what `save_course` wrote, empty if nothing was fine-tuned, and check all files against their digests.

    Raises:
        DamagedError: a file does not match.
    """
    described = read_json(folder / DESCRIPTION)
    with reading(folder / DESCRIPTION):
        digests = {str(name): str(digest) for name, digest in described["digests"].items()}
        digests[HISTORY]
    for name, digest in digests.items():
        verify(folder / name, digest)
    history = _rows(folder / HISTORY, Epoch)
    if history and classifier.WEIGHTS not in digests:
        raise damaged(folder / DESCRIPTION, f"has no digest of {classifier.WEIGHTS}")
    return Course(history, _rows(folder / AVERAGES, Average), _rows(folder / RATES, RatePoint))


def as_table(rows: Sequence[Any], kind: type) -> pd.DataFrame:
    """Return a row per instance of a dataclass; without any, an empty table with all columns."""
    return pd.DataFrame(rows, columns=[column.name for column in fields(kind)])


def _rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read a table of such rows; earlier versions wrote the history alone."""
    if not path.exists():
        return []
    with reading(path):
        return [kind(*row) for row in pd.read_parquet(path).itertuples(index=False)]
