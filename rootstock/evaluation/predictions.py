"""predictions.parquet: what each model answered for the images of an evaluation.

Of up to MOST_CLASSES classes it has all probabilities. Of more, a million images would take gigabytes: it has the five
most probable classes and the probability of the label, or all of them with `evaluate.probabilities: all`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rootstock.config.params import Evaluate
from rootstock.evaluation.scored import Predictions, Scored
from rootstock.system.files import reading, replacing

MOST_CLASSES = 100
IMAGE = ("image_id", "domain", "split", "label")
ROWS = 8192  # at a time


def keeps_all(params: Evaluate, classes: int) -> bool:
    """Return whether all probabilities are written."""
    return params.probabilities == "all" or classes <= MOST_CLASSES


def write(path: Path, scored: Iterable[Scored], classes: Sequence[str]) -> None:
    """Write a row per image, with its id, domain, split and label, and what each model answered.

    - `<model>_predicted`: the most probable class; or, of any number of classes, those predicted, `cat;dog`.
    - `<model>_label_probability`: float32.
    - `<model>`: all probabilities, in the order of the classes (list of float32); or, where they were not kept,
      `<model>_top` and `<model>_top_probability`: the five most probable classes, and their probabilities.

    Those of a model that was not measured on an image are null.
    """
    parts = list(scored)
    models = {name: own.probabilities is not None for part in parts for name, own in part.predictions.items()}
    schema = _schema(models)
    names = np.asarray(classes, dtype=object)
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for part in parts:
            for start in range(0, len(part.rows), ROWS):
                writer.write_table(_table(part, slice(start, start + ROWS), schema, names))


def _schema(models: Mapping[str, bool]) -> pa.Schema:
    """Return the columns of models, by whether all of their probabilities were kept."""
    fields = [(name, pa.string()) for name in IMAGE]
    for model, full in models.items():
        fields += [(f"{model}_predicted", pa.string()), (f"{model}_label_probability", pa.float32())]
        all_of_them = [(model, pa.list_(pa.float32()))]
        top = [(f"{model}_top", pa.list_(pa.string())), (f"{model}_top_probability", pa.list_(pa.float32()))]
        fields += all_of_them if full else top
    return pa.schema(fields)


def _table(part: Scored, rows: slice, schema: pa.Schema, names: NDArray[np.object_]) -> pa.Table:
    images = part.rows.iloc[rows]
    columns = {name: pa.array(images[name], pa.string()) for name in IMAGE}
    for model, own in part.predictions.items():
        columns[f"{model}_predicted"] = pa.array(own.texts(names, rows), pa.string())
        columns[f"{model}_label_probability"] = pa.array(own.label_probability[rows])
        if own.probabilities is not None:
            columns[model] = _lists(own.probabilities[rows])
        elif isinstance(own, Predictions):
            top = own.top[rows]
            columns[f"{model}_top"] = _lists(top, pa.array(names[top.ravel()], pa.string()))
            columns[f"{model}_top_probability"] = _lists(own.top_probability[rows])
    missing = {field.name: pa.nulls(len(images), field.type) for field in schema if field.name not in columns}
    return pa.table(columns | missing, schema=schema)


def _lists(matrix: NDArray[np.generic], flat: pa.Array | None = None) -> pa.ListArray:
    """Return the rows of a matrix as lists: its values, or what `flat` has in their place."""
    ends = np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1]
    values = pa.array(np.ascontiguousarray(matrix).ravel()) if flat is None else flat
    return pa.ListArray.from_arrays(pa.array(ends), values)


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
