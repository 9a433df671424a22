"""Who was champion when, and why: history.parquet, one row per decision, in order.

A champion's row has its version, and the dvc.lock and params.yaml that bring it back. The file is added to DVC, which
may bring back an older one with an older commit, so a copy is kept on this machine: a history only ever grows, and of
two the longer one is the later.
"""

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rootstock.system.errors import DamagedError
from rootstock.system.files import reading, replacing

log = logging.getLogger(__name__)

HISTORY = "history.parquet"
SCHEMA = pa.schema(
    [
        ("decision", pa.string()),
        ("version", pa.int32()),
        ("reason", pa.string()),
        ("images", pa.int64()),
        ("new_images", pa.int64()),
        ("new_domains", pa.list_(pa.string())),
        ("comparison", pa.string()),
        ("model", pa.string()),
        ("lock", pa.string()),
        ("params", pa.string()),
    ]
)
FIRST, PROMOTED, REJECTED, BROUGHT_BACK = "first", "promoted", "rejected", "brought back"


@dataclass(frozen=True)
class Row:
    """A decision.

    `version` is that of the champion that the decision left in place; `comparison` holds the figures as JSON (see
    challenge.PairedComparison). Of new champions alone: `model`, a digest, and the texts of dvc.lock and params.yaml.
    """

    decision: str
    version: int
    reason: str
    images: int
    new_images: int = 0
    new_domains: tuple[str, ...] = ()
    comparison: str = "[]"
    model: str = ""
    lock: str = ""
    params: str = ""


def read(*folders: Path) -> list[Row]:
    """Read a history, the longest where there are several; none where there is none."""
    path = max((folder / HISTORY for folder in folders), key=_length)
    if not path.exists():
        return []
    with reading(path):
        rows = pq.read_table(path).to_pylist()
        return [Row(**{**row, "new_domains": tuple(row["new_domains"])}) for row in rows]


def write(folder: Path, rows: list[Row]) -> None:
    """Replace a history."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA)
    with replacing(folder / HISTORY) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def keep(source: Path, target: Path) -> None:
    """Copy a history to where a shorter one is, or none."""
    if _length(source / HISTORY) > _length(target / HISTORY):
        with replacing(target / HISTORY) as temporary:
            shutil.copy(source / HISTORY, temporary)


def _length(path: Path) -> int:
    """Count the rows of a history; one that is damaged is worth less than any, so that its copy counts."""
    if not path.exists():
        return 0
    try:
        with reading(path):
            return int(pq.read_metadata(path).num_rows)
    except DamagedError as error:
        log.warning("%s", error)
        return 0


def versions(rows: list[Row]) -> dict[int, Row]:
    """Return each champion's own row, by version."""
    return {row.version: row for row in rows if row.lock}
