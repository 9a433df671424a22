"""The dataset that a run of ingest finds, in compact columns: text that repeats as categories, images by number."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from rootstock.dataset import table_files, tables
from rootstock.ingest import ledger as ledgers
from rootstock.ingest.ledger import Ledger, Numbers

CATEGORIES = ("source", "label", "domain")
KEPT = ["image", "source", "label"]
COLUMNS = ("image_id", "source", "path", "label", "domain", "split", "shard")  # read of the manifest


@dataclass(frozen=True)
class Earlier:
    """What is needed of a dataset that is to be replaced.

    `manifest` has the columns image (its number in the ledger), source and label; `files` has, of the sources that were
    asked for, also path and domain. `rejected` are the rejected files.
    """

    manifest: pd.DataFrame
    files: pd.DataFrame
    rejected: pd.DataFrame
    ledger: Ledger
    summary: dict[str, Any]


def load(folder: Path, files_of: Collection[str]) -> Earlier:
    """Read a dataset; an empty one if there is none.

    Args:
        folder: of the tables.
        files_of: titles of the sources whose files are needed; the others' would take most of the memory.

    Raises:
        DamagedError: a table is damaged, or the tables belong to different datasets.
    """
    tables.finish_saving(folder)
    ledger = ledgers.load(folder)
    numbers = ledger.numbers()
    path, schema = folder / tables.MANIFEST, tables.SCHEMAS[tables.MANIFEST]
    moved, parts = 0, [_compact(schema.empty_table(), numbers)]
    files = [parts[0]]
    for file in table_files.files_of(path):
        part = table_files.read(file, schema, of_shard=path.is_dir()).select(COLUMNS)
        images = _compact(part, numbers)
        files.append(images[images["source"].isin(list(files_of))])
        parts.append(images[KEPT].copy())
        moved += _moved(part, images["image"].to_numpy(), ledger)
    tables.check_same_splits(folder, moved)
    rejected = tables.load_rejected(folder)
    rejected = rejected.astype(dict.fromkeys(("source", "label", "domain", "reason"), "category"))
    parts[0] = parts[0][KEPT]
    return Earlier(concatenated(parts), concatenated(files), rejected, ledger, tables.load_summary(folder))


def _compact(part: pa.Table, numbers: Numbers) -> pd.DataFrame:
    frame: pd.DataFrame = part.select([*CATEGORIES, "path"]).to_pandas(categories=list(CATEGORIES))
    return frame.assign(image=numbers.of(part["image_id"].to_pylist()))


def _moved(part: pa.Table, images: NDArray[np.int32], ledger: Ledger) -> int:
    """Count the images that have another split in the ledger; none may be there after a killed run."""
    there = images < len(ledger)
    splits = ledger.split[images[there]]
    return int(((splits >= 0) & (splits != ledgers.split_codes(part["split"])[there])).sum())


def concatenated(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Return tables one below the other; columns that are categories stay so."""
    if len(parts) == 1:
        return parts[0].reset_index(drop=True)
    columns: dict[str, Any] = {}
    for name, kind in parts[0].dtypes.items():
        own = [part[name] for part in parts]
        is_category = isinstance(kind, pd.CategoricalDtype)
        columns[str(name)] = _one_category(own) if is_category else pd.concat(own, ignore_index=True)
    return pd.DataFrame(columns)


def _one_category(parts: "list[pd.Series[Any]]") -> pd.Categorical:
    known: dict[str, int] = {}
    codes = [ledgers.recoded(part.cat.codes.to_numpy(), part.cat.categories, known) for part in parts]
    return category(np.concatenate(codes), list(known))


def category(codes: NDArray[np.signedinteger[Any]], values: Sequence[str]) -> pd.Categorical:
    """Return text by its codes, NONE for none."""
    return pd.Categorical.from_codes(codes, categories=pd.Index(np.array(values, object), dtype="str"))
