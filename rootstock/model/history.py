"""The history of champions: history.parquet, one row per promotion decision, in order.

A new champion's row has its version, and the dvc.lock and params.yaml that restore it. DVC may restore an older file
with an older commit, so a copy is kept on this machine. A history only grows, so the longer of two is the newer.
"""

import json
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
FIGURE = pa.struct([(name, pa.float64()) for name in ("value", "low", "high")])
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
        ("at", pa.string()),
        ("run", pa.string()),
        ("validation", FIGURE),
        ("test", FIGURE),
        ("data", pa.string()),
    ]
)
FIRST, PROMOTED, REJECTED, UNDECIDED, ROLLED_BACK = "first", "promoted", "rejected", "undecided", "rolled back"
OF_EARLIER_VERSIONS = {"brought back": ROLLED_BACK}


@dataclass(frozen=True)
class Row:
    """One decision.

    `version` is the version of the champion after the decision; `comparison` holds the figures as JSON (see
    paired_comparison.PairedComparison). Rows of new champions also have `model` (a digest) and the texts of dvc.lock
    and params.yaml. `at` is the time (ISO 8601, UTC) and `run` the flow run; `validation` and `test` are the accuracy
    of the model that was decided on, with its 95 % interval; `data` is the version of the dataset that was decided on.
    Earlier versions did not write these five.
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
    at: str = ""
    run: str = ""
    validation: dict[str, float] | None = None
    test: dict[str, float] | None = None
    data: str = ""


def read_accuracy(path: Path) -> dict[str, float] | None:
    """Read the accuracy with its interval from metrics.json or test.json.

    Returns:
        value, and low and high where there is an interval; None if the file is missing, damaged or of an old version.
    """
    try:
        found = json.loads(path.read_bytes())
        ends = found["accuracy"] if isinstance(found["accuracy"], dict) else {**found, "value": found["accuracy"]}
        return {name: float(ends[name]) for name in ("value", "low", "high") if name == "value" or name in ends}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read(*folders: Path) -> list[Row]:
    """Read the longest history among folders; empty if there is none."""
    path = max((folder / HISTORY for folder in folders), key=_length)
    if not path.exists():
        return []
    with reading(path):
        rows = pq.read_table(path).to_pylist()
        return [
            Row(
                **{
                    **row,
                    "new_domains": tuple(row["new_domains"]),
                    "decision": OF_EARLIER_VERSIONS.get(row["decision"], row["decision"]),
                }
            )
            for row in rows
        ]


def write(folder: Path, rows: list[Row]) -> None:
    """Write a history, replacing an earlier one."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA)
    with replacing(folder / HISTORY) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def keep(source: Path, target: Path) -> None:
    """Copy a history to a folder unless that has one as long."""
    if _length(source / HISTORY) > _length(target / HISTORY):
        with replacing(target / HISTORY) as temporary:
            shutil.copy(source / HISTORY, temporary)


def _length(path: Path) -> int:
    """Return the number of rows; 0 for a damaged history, so that its copy is used."""
    if not path.exists():
        return 0
    try:
        with reading(path):
            return int(pq.read_metadata(path).num_rows)
    except DamagedError as error:
        log.warning("%s", error)
        return 0


def versions(rows: list[Row]) -> dict[int, Row]:
    """Return the row of each new champion, by version."""
    return {row.version: row for row in rows if row.lock}
