"""How often the present test images have been used: a log of the different models measured on them.

Whoever measures one model after the other and keeps the best has chosen by the test images, and their figures flatter
it. The logs are of this machine; they say so, and forbid nothing.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rootstock.system.errors import DamagedError
from rootstock.system.files import read_json, reading, replacing, write

MODELS, SETS = b"models", b"sets"  # in the metadata of the log: digests of models, and sets of their positions


@dataclass(frozen=True)
class _Log:
    """Which models were measured on each image: the position of their set in `sets`, of which there are few."""

    set_of: "pd.Series[Any]"  # by image_id
    sets: list[frozenset[int]]  # of positions in `models`
    models: list[str]


def count(path: Path, test_images: Iterable[str], model: str) -> int:
    """Record that a model was measured on test images.

    Args:
        path: the log, a Parquet file, created if missing; a damaged one is begun anew.
        test_images: their ids.
        model: digest of its weights; the same model counts once.

    Returns:
        How many different models have been measured on these images, or on half of them at least: a few new images
        make the others no fresher.
    """
    log = _read_log(path)
    images = pd.Index(list(test_images), dtype="object")
    models = log.models if model[:16] in log.models else [*log.models, model[:16]]
    sets = [*log.sets, frozenset[int]()]
    before = log.set_of.reindex(images, fill_value=len(sets) - 1)
    grown = {code: sets[code] | {models.index(model[:16])} for code in before.unique()}
    numbers = {members: number for number, members in enumerate(dict.fromkeys([*sets, *grown.values()]))}
    now = before.map({code: numbers[members] for code, members in grown.items()})
    if any(members != sets[code] for code, members in grown.items()):
        others = log.set_of.drop(images, errors="ignore").map(lambda code: numbers[sets[code]])
        _write_log(path, _Log(pd.concat([others, now]), list(numbers), models))
    sizes = before.map({code: len(members) for code, members in grown.items()})
    return int(np.quantile(sizes, 0.5, method="higher")) if len(now) else 1


def _read_log(path: Path) -> _Log:
    try:
        with reading(path):
            table = pq.read_table(path)
            metadata = table.schema.metadata or {}
            models = json.loads(metadata[MODELS])
            if SETS in metadata:
                sets = [frozenset(members) for members in json.loads(metadata[SETS])]
            else:  # of an earlier version, which counted: these were the last ones
                most = max(table["models"].to_pylist(), default=0)
                sets = [frozenset(range(max(len(models) - number, 0), len(models))) for number in range(most + 1)]
            images = pd.Index(table["image_id"].to_pylist(), dtype="object")
            codes = table["models"].to_numpy()
            are_there = (codes < len(sets)).all() and frozenset().union(*sets) <= set(range(len(models)))
            if not (images.is_unique and are_there):
                raise ValueError("positions beyond the lists that they are in")
            return _Log(pd.Series(codes, images), sets, models)
    except DamagedError:  # or there is none yet
        return _Log(pd.Series([], pd.Index([], dtype="object"), dtype="int64"), [], [])


def _write_log(path: Path, log: _Log) -> None:
    """Write the log: the position of its set for each image, and without sets that no image has."""
    used = sorted(log.set_of.unique())
    codes = log.set_of.map({code: number for number, code in enumerate(used)})
    columns = {"image_id": pa.array(log.set_of.index, pa.string()), "models": pa.array(codes, pa.int64())}
    metadata = {MODELS: log.models, SETS: [sorted(log.sets[code]) for code in used]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        table = pa.table(columns)
        table = table.replace_schema_metadata({key: json.dumps(value).encode() for key, value in metadata.items()})
        pq.write_table(table, temporary, compression="zstd")


def first_measured(path: Path, delivered: Iterable[str], model: str) -> set[str]:
    """Record that a model was measured on test images that a champion was not trained with.

    Args:
        path: the log, created if missing; a damaged one is begun anew. It keeps no images but those delivered now.
        delivered: ids of the images.
        model: digest of its weights.

    Returns:
        The images on which no other model has been measured before.
    """
    log: dict[str, str] = _read(path)
    now = {image: log.get(image, model[:16]) for image in delivered}
    if now != log:
        _write(path, now)
    return {image for image, first in now.items() if first == model[:16]}


def _read(path: Path) -> dict[str, Any]:
    try:
        log: dict[str, Any] = read_json(path) if path.exists() else {}
    except DamagedError:
        return {}
    return log


def _write(path: Path, log: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(log))


def describe(models: int, images: int) -> str:
    """Describe what that does to test figures; "" for the first model."""
    if models < 2:
        return ""
    these = "this test image" if images == 1 else f"these {images:,} test images, or most of them"
    return (
        f"The {_ordinal(models)} model measured on {these}: its figures are a "
        "little flattered if it was chosen by them. For an unbiased figure, add fresh images, or draw a new split: "
        "change seed or ingest.split, remove data/dataset, and run again (what came through the inbox has to be "
        "delivered again)."
    )


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{suffix}"
