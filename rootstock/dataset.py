"""The data set in four files under one folder: what there is, what was turned away, and how much of each.

manifest.parquet   one row an image that is trained or tested on
rejected.parquet   one row a file that is not, with the reason
ledger.parquet     one row an image ever packed, with its split: it keeps it even while its file is away
summary.json       counts
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rootstock.errors import SourceError
from rootstock.files import replacing, write

if TYPE_CHECKING:
    import pandas as pd  # pyarrow imports it when a table becomes a frame: a look that finds nothing new never does

MANIFEST, REJECTED, LEDGER, SUMMARY = "manifest.parquet", "rejected.parquet", "ledger.parquet", "summary.json"
FILES = (MANIFEST, REJECTED, LEDGER, SUMMARY)

SCHEMAS = {
    MANIFEST: pa.schema(
        [
            ("image_id", pa.string()),
            ("source", pa.string()),
            ("path", pa.string()),
            ("label", pa.string()),
            ("class_index", pa.int32()),
            ("domain", pa.string()),
            ("split", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("format", pa.string()),
            ("group_id", pa.string()),
            ("batch", pa.int32()),
            ("shard", pa.string()),
            ("offset", pa.int64()),
            ("size", pa.int64()),
        ]
    ),
    REJECTED: pa.schema([(name, pa.string()) for name in ("source", "path", "domain", "label", "reason")]),
    LEDGER: pa.schema(
        [
            ("image_id", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("format", pa.string()),
            ("phash", pa.uint64()),
            ("split", pa.string()),
            ("group_id", pa.string()),
            ("batch", pa.int32()),
            ("shard", pa.string()),
            ("offset", pa.int64()),
            ("size", pa.int64()),
        ]
    ),
}


@dataclass(frozen=True)
class Dataset:
    """The four files, read."""

    manifest: "pd.DataFrame"
    rejected: "pd.DataFrame"
    ledger: "pd.DataFrame"
    summary: dict[str, Any]


def load(folder: Path) -> Dataset:
    """Read a data set; an empty one where there is none."""
    summary = folder / SUMMARY
    return Dataset(
        manifest=_read(folder / MANIFEST, MANIFEST),
        rejected=_read(folder / REJECTED, REJECTED),
        ledger=_read(folder / LEDGER, LEDGER),
        summary=json.loads(summary.read_bytes()) if summary.exists() else {},
    )


def load_manifest(folder: Path) -> "pd.DataFrame":
    """Read the manifest.

    Raises:
        SourceError: there is none.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise SourceError(f"{path} is not there: run ingest first, or `dvc pull` it")
    manifest: pd.DataFrame = pq.read_table(path).to_pandas()
    return manifest


def classes_of(manifest: "pd.DataFrame") -> list[str]:
    """Name the classes in the order of `class_index`."""
    return sorted(manifest["label"].unique())


def save(folder: Path, data: Dataset) -> None:
    """Write a data set; a file whose bytes would stay the same is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in ((MANIFEST, data.manifest), (REJECTED, data.rejected), (LEDGER, data.ledger)):
        table = pa.Table.from_pandas(frame, schema=SCHEMAS[name], preserve_index=False).replace_schema_metadata()
        path = folder / name
        if not path.exists() or not pq.read_table(path).equals(table):
            with replacing(path) as temporary:
                pq.write_table(table, temporary, compression="zstd")
    text = json.dumps(data.summary, indent=2, ensure_ascii=False) + "\n"
    if not (folder / SUMMARY).exists() or (folder / SUMMARY).read_bytes() != text.encode():
        write(folder / SUMMARY, text)


def _read(path: Path, name: str) -> "pd.DataFrame":
    table = pq.read_table(path) if path.exists() else SCHEMAS[name].empty_table()
    frame: pd.DataFrame = table.to_pandas()
    return frame
