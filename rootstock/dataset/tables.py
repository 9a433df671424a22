"""The tables of the dataset, in one folder.

manifest.parquet/  one row per image in use (training, validation or test)
rejected.parquet   one row per rejected file, with the reason
ledger.parquet/    one row per image ever packed, with its split, which it keeps even while its file is missing
summary.json       counts

Manifest and ledger are folders with one file per shard, so that a delivery only adds files and DVC pushes only these;
Parquet readers treat such a folder as one table.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rootstock.dataset import image_ids, label_sets, table_files
from rootstock.dataset.table_files import files_of as files_of
from rootstock.system.errors import SourceError
from rootstock.system.files import damaged, read_json, reading, write

if TYPE_CHECKING:
    import pandas as pd  # not imported when ingest finds nothing new

Labels = NDArray[Any]  # class indices (n,) int64, or which of any number of classes each image has (n, k) bool

MANIFEST, REJECTED, LEDGER, SUMMARY = "manifest.parquet", "rejected.parquet", "ledger.parquet", "summary.json"
NO_INDEX = -1  # the class_index of images that have any number of classes
UNPACKED = "unpacked"  # in the ledger, the shard of an image whose bytes were removed by compaction
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
            ("group", pa.string()),  # the name of its group
        ]
    ),
}


@dataclass(frozen=True)
class Dataset:
    """The contents of the four files."""

    manifest: "pd.DataFrame"
    rejected: "pd.DataFrame"
    ledger: "pd.DataFrame"
    summary: dict[str, Any]


def load(folder: Path) -> Dataset:
    """Read a dataset; an empty one if there is none. Ingest reads less of it (rootstock/ingest/earlier.py).

    Args:
        folder: of the tables.

    Raises:
        DamagedError: a table is damaged, or the tables belong to different datasets.
    """
    finish_saving(folder)
    manifest, ledger = _read(folder / MANIFEST, MANIFEST), _read(folder / LEDGER, LEDGER)
    place = image_ids.places(manifest["image_id"], ledger["image_id"])
    splits = ledger["split"].iloc[place[place >= 0]].reset_index(drop=True)
    own = manifest["split"][place >= 0].reset_index(drop=True)
    check_same_splits(folder, int((splits.notna() & (splits != own)).sum()))  # NaN after a killed run
    return Dataset(manifest, _read(folder / REJECTED, REJECTED), ledger, load_summary(folder))


def load_manifest(folder: Path) -> "pd.DataFrame":
    """Read the manifest.

    Raises:
        SourceError: it is missing.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise SourceError(f"{path} is missing: run ingest first, or restore it with `dvc pull`")
    return _read(path, MANIFEST)


def load_rejected(folder: Path) -> "pd.DataFrame":
    """Read the table of rejected files; an empty one if there is none."""
    return _read(folder / REJECTED, REJECTED)


def load_summary(folder: Path) -> dict[str, Any]:
    """Read the summary; an empty one if there is none."""
    path = folder / SUMMARY
    return read_json(path) if path.exists() else {}


def labels_of(folder: Path, source: str) -> dict[str, str]:
    """Return the labels of a source's images by path."""
    found: dict[str, str] = {}
    for path in files_of(folder / MANIFEST):
        with reading(path), pq.ParquetFile(path) as file:  # pq.read_table would import pandas
            columns = file.read(columns=["source", "path", "label"]).to_pydict()
        rows = zip(columns["source"], columns["path"], columns["label"], strict=True)
        found |= {place: label for name, place, label in rows if name == source}
    return found


def load_verified_summary(folder: Path, manifest: "pd.DataFrame") -> dict[str, Any]:
    """Read the summary and check it against the manifest.

    Raises:
        DamagedError: it is damaged, or belongs to another manifest.
    """
    path = folder / SUMMARY
    summary = read_json(path)
    with reading(path):
        for name in ("by_class", "domains", "rejected"):
            dict(summary[name])
        expected = dict(summary["splits"])
        found = {split: int((manifest["split"] == split).sum()) for split in expected}
        if expected != found or summary["images"] != len(manifest):
            raise ValueError(f"it counts {summary['images']:,} images, but {MANIFEST} has {len(manifest):,}")
    return summary


def is_complete(folder: Path) -> bool:
    """Whether all tables exist, and no run was killed while replacing them."""
    tables = [folder / name for name in FILES]
    interrupted = any(table.with_suffix(table_files.NEXT).exists() for table in tables)
    return all(table.exists() for table in tables) and not interrupted


def is_multi_label(manifest: "pd.DataFrame") -> bool:
    """Whether images have any number of classes: `label` is a set of them (label_sets.py), and no index tells it."""
    return bool(len(manifest)) and int(manifest["class_index"].iloc[0]) == NO_INDEX


def classes_of(manifest: "pd.DataFrame") -> list[str]:
    """Return the classes in the order of `class_index`, or of the columns of `labels_of_rows`."""
    texts = manifest["label"].unique()
    return label_sets.classes_in(texts) if is_multi_label(manifest) else sorted(texts)


def one_row_per_label(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return rows of a manifest with one label each; those with several as often as that."""
    return label_sets.one_row_per_label(rows) if is_multi_label(rows) else rows


def labels_of_rows(rows: "pd.DataFrame", classes: Sequence[str]) -> Labels:
    """Return the labels of rows of a manifest: class indices (n,) int64, or which classes each image has (n, k) bool.

    Args:
        rows: of a manifest.
        classes: as `classes_of` returns them for the whole manifest, for the columns of the matrix.
    """
    if is_multi_label(rows):
        return label_sets.matrix(rows["label"], classes)
    return rows["class_index"].to_numpy(np.int64)


def in_shard_order(manifest: "pd.DataFrame", split: str) -> "pd.DataFrame":
    """Return a split's images in the order in which features are read and models score them."""
    rows = manifest[manifest["split"] == split]
    return rows.sort_values(["shard", "offset"], ignore_index=True)


def group_numbers(rows: "pd.DataFrame") -> NDArray[np.int64]:
    """Return the group of each row of a manifest as a number, (n,)."""
    numbers: NDArray[np.int64] = rows["group_id"].factorize()[0].astype("int64")
    return numbers


def strata_of_rows(rows: "pd.DataFrame") -> NDArray[np.int64]:
    """Return what draws of rows of a manifest are stratified by (n,): the class, or the rarest one of each image."""
    if not is_multi_label(rows):
        return rows["class_index"].to_numpy(np.int64)
    return label_sets.rarest(label_sets.matrix(rows["label"], classes_of(rows)))


def save(folder: Path, data: Dataset) -> None:
    """Write a dataset; files whose rows are unchanged are not rewritten."""
    folder.mkdir(parents=True, exist_ok=True)
    grouped = "group" in data.ledger.columns and bool(data.ledger["group"].notna().any())
    for name, frame in ((LEDGER, data.ledger), (MANIFEST, data.manifest)):
        schema = schema_of(name, grouped=grouped)
        table_files.write_by_shard(folder / name, _by_shard(frame, schema), schema)
    save_rejected(folder, data.rejected)
    save_summary(folder, data.summary)


def save_rejected(folder: Path, rejected: "pd.DataFrame") -> None:
    """Write the table of rejected files, unless its rows are unchanged."""
    schema = SCHEMAS[REJECTED]
    table_files.write(folder / REJECTED, pa.Table.from_pandas(rejected, schema=schema, preserve_index=False), schema)


def save_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write the summary, unless it is unchanged."""
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    if not (folder / SUMMARY).exists() or (folder / SUMMARY).read_bytes() != text.encode():
        write(folder / SUMMARY, text)


def _by_shard(frame: "pd.DataFrame", schema: pa.Schema) -> Iterator[tuple[str, pa.Table]]:
    for shard, rows in frame.groupby("shard", sort=True):
        yield str(shard), pa.Table.from_pandas(rows, schema=schema, preserve_index=False)


def schema_of(name: str, *, grouped: bool) -> pa.Schema:
    """Return the schema of a table, without its optional column unless some image is in a named group."""
    return pa.schema([field for field in SCHEMAS[name] if grouped or field.name not in table_files.OPTIONAL])


def check_same_splits(folder: Path, moved: int) -> None:
    """Check that no image of the manifest has another split than in the ledger.

    Raises:
        DamagedError: some do, `moved` of them.
    """
    if moved:
        raise damaged(
            folder / LEDGER, f"belongs to another dataset than {MANIFEST}: {moved:,} images have other splits"
        )


def finish_saving(folder: Path) -> None:
    """Complete the saving of a run that was killed, and check that all files are from ingest.

    Raises:
        DamagedError: one is not.
    """
    for table in (LEDGER, MANIFEST):
        table_files.move_in(folder / table)
    table_files.check_written(file for name in (LEDGER, MANIFEST, REJECTED) for file in files_of(folder / name))


def _read(path: Path, name: str, columns: Sequence[str] | None = None) -> "pd.DataFrame":
    names = SCHEMAS[name].names if columns is None else columns
    files = [table_files.read(file, SCHEMAS[name], of_shard=path.is_dir()).select(names) for file in files_of(path)]
    frame: pd.DataFrame = pa.concat_tables([SCHEMAS[name].empty_table().select(names), *files]).to_pandas()
    return frame
