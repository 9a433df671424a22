"""The tables of the dataset, in one folder.

manifest.parquet/  one row per image in use (training, validation or test)
rejected.parquet   one row per rejected file, with the reason
ledger.parquet/    one row per image ever packed, with its split, which it keeps even while its file is missing
summary.json       counts

Manifest and ledger are folders with one file per shard, so that a delivery only adds files and DVC pushes only these;
Parquet readers treat such a folder as one table.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rootstock.dataset import image_ids, label_sets
from rootstock.system import digests
from rootstock.system.digests import digest_in, with_digest
from rootstock.system.errors import SourceError
from rootstock.system.files import damaged, read_json, reading, replacing, replacing_folder, sync, write

if TYPE_CHECKING:
    import pandas as pd  # not imported when ingest finds nothing new

Labels = NDArray[Any]  # class indices (n,) int64, or which of any number of classes each image has (n, k) bool

MANIFEST, REJECTED, LEDGER, SUMMARY = "manifest.parquet", "rejected.parquet", "ledger.parquet", "summary.json"
NEXT = ".next"  # suffix of a complete new table that is about to replace the current one
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
OPTIONAL = {"group"}  # columns that are left out if they are empty, as in tables of earlier versions


@dataclass(frozen=True)
class Dataset:
    """The contents of the four files."""

    manifest: "pd.DataFrame"
    rejected: "pd.DataFrame"
    ledger: "pd.DataFrame"
    summary: dict[str, Any]


def load(folder: Path, of_manifest: Sequence[str] | None = None) -> Dataset:
    """Read a dataset; an empty one if there is none.

    Args:
        folder: of the tables.
        of_manifest: the columns of the manifest that are needed, all by default: of a million images, those that are
            in the ledger, too, take 200 MB.

    Raises:
        DamagedError: a table is damaged, or the tables belong to different datasets.
    """
    for table in (LEDGER, MANIFEST):
        _move_in(folder / table)
    _check_written(folder)
    wanted = SCHEMAS[MANIFEST].names if of_manifest is None else of_manifest
    manifest = _read(folder / MANIFEST, MANIFEST, list(dict.fromkeys([*wanted, "image_id", "split"])))
    ledger = _read(folder / LEDGER, LEDGER)
    place = image_ids.places(manifest["image_id"], ledger["image_id"])
    splits = ledger["split"].iloc[place[place >= 0]].reset_index(drop=True)
    own = manifest["split"][place >= 0].reset_index(drop=True)
    if moved := int((splits.notna() & (splits != own)).sum()):  # NaN after a killed run
        raise damaged(
            folder / LEDGER, f"belongs to another dataset than {MANIFEST}: {moved:,} images have other splits"
        )
    manifest = manifest[list(wanted)]
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
    return all(table.exists() for table in tables) and not any(table.with_suffix(NEXT).exists() for table in tables)


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


def files_of(path: Path) -> list[Path]:
    """Return the files of a table in row order; empty if it does not exist."""
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    return [path] if path.exists() else []


def save(folder: Path, data: Dataset) -> None:
    """Write a dataset; files whose rows are unchanged are not rewritten."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_by_shard(folder / LEDGER, data.ledger)
    _write_by_shard(folder / MANIFEST, data.manifest)
    _write(folder / REJECTED, data.rejected, SCHEMAS[REJECTED])
    text = json.dumps(data.summary, indent=2, ensure_ascii=False) + "\n"
    if not (folder / SUMMARY).exists() or (folder / SUMMARY).read_bytes() != text.encode():
        write(folder / SUMMARY, text)


def _write_by_shard(folder: Path, frame: "pd.DataFrame") -> None:
    """Write a table atomically: from half of a random split, the next run would draw a different one.

    Changed files are written to a sibling folder, which is complete once it has its name, and then moved.
    """
    schema = _schema_of(folder.name, frame)
    with replacing_folder(folder.with_suffix(NEXT)) as temporary:
        written = set()
        for shard, rows in frame.groupby("shard", sort=True):
            _write(temporary / f"{shard}.parquet", rows, schema, unless_like=folder / f"{shard}.parquet")
            written.add(f"{shard}.parquet")
        for path in files_of(folder):
            if path.name not in written:
                _write(temporary / path.name, frame.head(0), schema, unless_like=path)
    _move_in(folder)


def _move_in(folder: Path) -> None:
    """Move the files that `_write_by_shard` wrote, perhaps in a killed run; a file without rows means removal."""
    new = folder.with_suffix(NEXT)
    if not new.exists():
        return
    if folder.is_file():  # the format of earlier versions
        folder.unlink()
    folder.mkdir(exist_ok=True)
    for path in files_of(new):
        if pq.read_metadata(path).num_rows:
            path.replace(folder / path.name)
        else:
            (folder / path.name).unlink(missing_ok=True)
            path.unlink()
    sync(folder)
    new.rmdir()


def _schema_of(name: str, frame: "pd.DataFrame") -> pa.Schema:
    """Return the schema of a table without its optional columns, if they are empty in all of its files."""
    left_out = {column for column in OPTIONAL if column not in frame.columns or frame[column].isna().all()}
    return pa.schema([field for field in SCHEMAS[name] if field.name not in left_out])


def _write(path: Path, frame: "pd.DataFrame", schema: pa.Schema, unless_like: Path | None = None) -> None:
    table = with_digest(pa.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata())
    there = unless_like or path
    if not there.is_file() or not pq.read_table(there).equals(table, check_metadata=True):
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")


def _check_written(folder: Path) -> None:
    """Check that either all tables have a digest or, from earlier versions, none has.

    Raises:
        DamagedError: one was not written by ingest.
    """
    schemas = {}
    for path in (file for name in (LEDGER, MANIFEST, REJECTED) for file in files_of(folder / name)):
        with reading(path):
            schemas[path] = pq.read_schema(path)
    foreign = [path for path, schema in schemas.items() if not digest_in(schema)]
    if foreign and len(foreign) < len(schemas):
        raise damaged(foreign[0], "was not written by ingest: it has no digest, unlike the other tables")


def _read(path: Path, name: str, columns: Sequence[str] | None = None) -> "pd.DataFrame":
    names = SCHEMAS[name].names if columns is None else columns
    parts = [SCHEMAS[name].empty_table().select(names)]
    for file in files_of(path):
        table = _read_file(file, SCHEMAS[name])
        if path.is_dir() and table["shard"].unique().to_pylist() not in ([], [file.stem]):
            raise damaged(file, "belongs to another dataset: its rows are of another shard")
        parts.append(table.select(names))
    frame: pd.DataFrame = pa.concat_tables(parts).to_pandas()
    return frame


def _read_file(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a file of a table; optional columns that it lacks are empty."""
    with reading(path):
        there = set(pq.read_schema(path).names)
    written = [field for field in schema if field.name in there or field.name not in OPTIONAL]
    table = digests.read(path, pa.schema(written))
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names)
