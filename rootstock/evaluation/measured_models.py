"""How often the present test images have been used: a log of the different models measured on them.

Whoever measures one model after the other and keeps the best has chosen by the test images, and their figures flatter
it. The logs are of this machine; they say so, and forbid nothing.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rootstock.system.errors import DamagedError
from rootstock.system.files import read_json, reading, replacing, write

MODELS = b"models"  # in the metadata of the log: the digests of all models


def count(path: Path, test_images: Iterable[str], model: str) -> int:
    """Record that a model was measured on test images.

    Args:
        path: the log, a Parquet file with the number of models for each image, created if missing; a damaged one is
            begun anew.
        test_images: their ids.
        model: digest of its weights; the same model counts once.

    Returns:
        How many different models have been measured on these images, or on half of them at least: a few new images
        make the others no fresher.
    """
    log, models = _read_log(path)
    images = pd.Index(list(test_images), dtype="object")
    before = log.reindex(images, fill_value=0)
    now = before + 1 if model[:16] not in models else before.clip(lower=1)  # as whenever nothing was trained anew
    if not now.equals(before):
        _write_log(path, pd.concat([log.drop(images, errors="ignore"), now]), {**models, model[:16]: None})
    return int(np.quantile(now, 0.5, method="higher")) if len(now) else 1


def _read_log(path: Path) -> tuple["pd.Series[Any]", dict[str, None]]:
    """Return the number of models measured on each image, and the models in the order in which they were."""
    try:
        with reading(path):
            table = pq.read_table(path)
            counts = pd.Series(table["models"].to_numpy(), pd.Index(table["image_id"].to_pylist(), dtype="object"))
            return counts, dict.fromkeys(json.loads((table.schema.metadata or {})[MODELS]))
    except DamagedError:  # or there is none yet
        return pd.Series([], pd.Index([], dtype="object"), dtype="int64"), {}


def _write_log(path: Path, counts: "pd.Series[Any]", models: Iterable[str]) -> None:
    columns = {"image_id": pa.array(counts.index, pa.string()), "models": pa.array(counts, pa.int64())}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        table = pa.table(columns).replace_schema_metadata({MODELS: json.dumps(list(models)).encode()})
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
