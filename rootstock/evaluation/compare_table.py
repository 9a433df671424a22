"""The table of backbones measured on a dataset, compare.parquet: one row per candidate and version of the data."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rootstock.dataset import tables
from rootstock.system import digests
from rootstock.system.files import digest, reading, replacing

if TYPE_CHECKING:  # imports torch
    from rootstock.training.checkpoints import Epoch

log = logging.getLogger(__name__)
FROZEN, SCRATCH = "frozen", "scratch"
CANDIDATE = ["backbone", "variant", "trained", "layer", "pooling", "data"]  # columns that identify a candidate
CURVE = ["name", "data", "image_size", "origin"]  # columns that identify a network trained from scratch


@dataclass(frozen=True)
class Row:
    """The figures of a candidate; if it failed, `reason` says why and they are None.

    Accuracy and log loss are on the validation split (low, high: 95 % interval), since candidates are chosen by them.
    Parameters and multiply-accumulates per image are up to the layer, without a classification layer. `feature_bytes`
    is per image.
    """

    backbone: str
    variant: str | None
    trained: str
    layer: str
    pooling: str
    image_size: int | None = None
    origin: str | None = None
    width: int | None = None
    parameters: int | None = None
    macs: int | None = None
    feature_bytes: int | None = None
    images_per_second: float | None = None
    l2: float | None = None
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    log_loss: float | None = None
    train_images: int | None = None
    val_images: int | None = None
    computed: int | None = None  # images whose features were computed; the others were cached
    seconds: float | None = None
    data: str = ""  # the version of the dataset
    reason: str = ""


def version_of(dataset_dir: Path) -> str:
    """Return the version of a dataset: a short digest of its manifest."""
    return digest(tables.files_of(dataset_dir / tables.MANIFEST))[:12]


def merge(before: pd.DataFrame, row: Row) -> pd.DataFrame:
    """Add a row to earlier ones, replacing one of the same candidate on the same data.

    A failure replaces only an earlier failure: measurements are kept.
    """
    new = pd.DataFrame([row])
    if before.empty:
        return new
    same = (before[CANDIDATE].fillna("") == new[CANDIDATE].fillna("").iloc[0]).all(axis=1)
    measured = before["reason"] == ""
    same_input = (before[["image_size", "origin"]] == new[["image_size", "origin"]].iloc[0]).all(axis=1)
    replaced = same & (~measured | same_input & (row.reason == ""))
    return pd.concat([before[~replaced], new], ignore_index=True)


def merge_curves(before: pd.DataFrame, row: Row, epochs: "Sequence[Epoch]") -> pd.DataFrame:
    """Add the epochs of a network trained from scratch, replacing those of the same network and input.

    Args:
        before: as returned by `read_curves`; a curve of an earlier version has no image size, and is replaced, too.
        row: of the network.
        epochs: of its training.
    """
    name = f"{row.backbone} {row.variant}" if row.variant else row.backbone
    facts = {"name": name, "data": row.data, "image_size": row.image_size, "origin": row.origin}
    new = pd.DataFrame(epochs).assign(**facts)
    same = (before["name"] == name) & (before["data"] == row.data)
    same_input = (before["image_size"] == row.image_size) & (before["origin"] == row.origin)
    others = before[~(same & (same_input | before["image_size"].isna()))]
    return pd.concat([others, new], ignore_index=True) if len(others) else new


def read_curves(path: Path) -> pd.DataFrame:
    """Read the epochs of networks trained from scratch; without the file, an empty table."""
    found: pd.DataFrame = digests.read(path).to_pandas() if path.exists() else pd.DataFrame()
    return found.reindex(columns=[*CURVE, *found.columns.difference(CURVE, sort=False)])


def read(path: Path) -> pd.DataFrame:
    """Read compare.parquet; without the file, an empty table."""
    if not path.exists():
        return pd.DataFrame(columns=[field.name for field in fields(Row)])
    table = digests.read(path)
    names = [field.name for field in fields(Row)]
    with reading(path):
        frame: pd.DataFrame = table.to_pandas()
        if "test_images" in frame and "val_images" not in frame:
            log.warning(
                "%s: its rows were measured on test images, by an earlier version: measured anew if asked", path
            )
            return pd.DataFrame(columns=names)
        return frame[names]


def write(path: Path, table: pd.DataFrame) -> None:
    """Write compare.parquet or the table of training curves, replacing an earlier one."""
    with replacing(path) as temporary:
        pq.write_table(digests.with_digest(pa.Table.from_pandas(table, preserve_index=False)), temporary)
