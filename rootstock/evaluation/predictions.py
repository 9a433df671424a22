"""predictions.parquet: what each model answered for the images of an evaluation.

Of up to MOST_CLASSES classes it has all probabilities. Of more, a million images would take gigabytes: it has the TOP
most probable classes and the probability of the label, or all of them with `evaluate.probabilities: all`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rootstock.evaluation.model_pair import Scored
from rootstock.system.files import reading, replacing
from rootstock.training.calibration import most_probable

MOST_CLASSES, TOP = 100, 5
IMAGE = ("image_id", "domain", "split", "label")
ROWS = 8192  # at a time


def write(path: Path, scored: Iterable[Scored], classes: Sequence[str], *, full: bool) -> None:
    """Write a row per image, with its id, domain, split and label, and what each model answered.

    - `<model>_predicted`: the most probable class.
    - `<model>_label_probability`: float32.
    - `<model>`: all probabilities, in the order of the classes (list of float32); or, of many classes unless `full`,
      `<model>_top` and `<model>_top_probability`: the five most probable classes, and their probabilities.

    Those of a model that was not measured on an image are null.
    """
    parts = list(scored)
    models = list(dict.fromkeys(name for part in parts for name in part.probabilities))
    schema = _schema(models, full=full or len(classes) <= MOST_CLASSES)
    names = pa.array(classes, pa.string())
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for part in parts:
            for start in range(0, len(part.rows), ROWS):
                writer.write_table(_table(part, slice(start, start + ROWS), schema, names))


def _schema(models: Sequence[str], *, full: bool) -> pa.Schema:
    fields = [(name, pa.string()) for name in IMAGE]
    for model in models:
        fields += [(f"{model}_predicted", pa.string()), (f"{model}_label_probability", pa.float32())]
        all_of_them = [(model, pa.list_(pa.float32()))]
        top = [(f"{model}_top", pa.list_(pa.string())), (f"{model}_top_probability", pa.list_(pa.float32()))]
        fields += all_of_them if full else top
    return pa.schema(fields)


def _table(part: Scored, rows: slice, schema: pa.Schema, names: pa.Array) -> pa.Table:
    images = part.rows.iloc[rows]
    columns = {name: pa.array(images[name], pa.string()) for name in IMAGE}
    for model, values in part.probabilities.items():
        own = values[rows]
        label = part.labels[rows, None]
        columns[f"{model}_predicted"] = names.take(pa.array(own.argmax(1)))
        columns[f"{model}_label_probability"] = pa.array(np.take_along_axis(own, label, 1)[:, 0])
        if model in schema.names:
            columns[model] = _lists(own, pa.array(np.ascontiguousarray(own).ravel()))
        else:
            top = most_probable(own, TOP)
            columns[f"{model}_top"] = _lists(top, names.take(pa.array(top.ravel())))
            best = np.take_along_axis(own, top, 1)
            columns[f"{model}_top_probability"] = _lists(best, pa.array(best.ravel()))
    missing = {field.name: pa.nulls(len(images), field.type) for field in schema if field.name not in columns}
    return pa.table(columns | missing, schema=schema)


def _lists(matrix: NDArray[np.generic], flat: pa.Array) -> pa.ListArray:
    """Return the rows of a matrix, which `flat` has one after the other, as lists."""
    ends = np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends), flat)


def read_predicted(path: Path, model: str, classes: Sequence[str], columns: Sequence[str] = ()) -> pa.Table:
    """Read image_id, other columns, and `predicted`: the class that a model predicted, null where it was not measured.

    Args:
        path: as written now, or by an earlier version, which had probabilities alone.
        model: `head` or `finetuned`.
        classes: in index order.
        columns: others to read.

    Raises:
        DamagedError: the file is damaged.
    """
    own = ["image_id", *columns]
    with reading(path):
        if f"{model}_predicted" in pq.read_schema(path).names:
            table = pq.read_table(path, columns=[*own, f"{model}_predicted"])
            return table.rename_columns([*own, "predicted"])
        table = pq.read_table(path, columns=[*own, model])
        lists = table[model].combine_chunks()
        best = np.full(len(table), len(classes))  # no class
        best[lists.is_valid().to_numpy(zero_copy_only=False)] = (
            lists.flatten().to_numpy().reshape(-1, len(classes)).argmax(1)
        )
        names = pa.array([*classes, None], pa.string()).take(pa.array(best))
        return table.select(own).append_column("predicted", names)
