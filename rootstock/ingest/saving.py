"""Write the tables of a built dataset, shard by shard: only the rows of one shard are in memory as text."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rootstock.dataset import image_ids, table_files, tables
from rootstock.dataset.tables import LEDGER, MANIFEST, SCHEMAS
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.ledger import NONE, Ledger, rows_of_shards
from rootstock.ingest.scan import Scan
from rootstock.system.files import reading

STORED = ["image_id", "width", "height", "format", "offset", "size"]  # what is not in memory
OF_FILES = ["source", "path", "label", "domain"]


@dataclass(frozen=True)
class Built:
    """A dataset that is to be written.

    `first` is the first image of each image's group, (n,), and `file_of` the row in `files` of the accepted file of
    each, (n,), both NONE for none; `classes` has the class_index of each label.
    """

    ledger: Ledger
    first: NDArray[np.int32]
    files: pd.DataFrame
    file_of: NDArray[np.int32]
    classes: dict[str, int]
    rejected: pd.DataFrame
    summary: dict[str, Any]

    def left_out(self, since: int) -> int:
        """Return how many images of later batches have no accepted file, e.g. since two labels contradict."""
        return int(np.count_nonzero((self.ledger.batch > since) & (self.file_of == NONE)))


def save(folder: Path, built: Built, scan: Scan) -> None:
    """Write a dataset; files whose rows are unchanged are not rewritten.

    Args:
        folder: of the tables; those that are there have the images that are not in the scan cache.
        built: what is to be written.
        scan: the scan cache, which has the images of new shards.
    """
    schema = tables.schema_of(LEDGER, grouped=bool((built.ledger.group != NONE).any()))
    table_files.write_by_shard(folder / LEDGER, _ledger_parts(folder / LEDGER, built, scan), schema)
    table_files.write_by_shard(folder / MANIFEST, _manifest_parts(folder / LEDGER, built), SCHEMAS[MANIFEST])
    tables.save_rejected(folder, built.rejected)
    tables.save_summary(folder, built.summary)


def _ledger_parts(path: Path, built: Built, scan: Scan) -> Iterator[tuple[str, pa.Table]]:
    for shard, rows in rows_of_shards(built.ledger):
        yield shard, _ledger_part(path, shard, rows, built, scan)


def _ledger_part(path: Path, shard: str, rows: NDArray[np.int64], built: Built, scan: Scan) -> pa.Table:
    ledger, first = built.ledger, built.first[rows]
    ids = image_ids.texts(ledger.ids[rows])
    stored = _stored(path, shard, ids, scan)
    columns = {name: stored[name] for name in STORED} | {
        "phash": pa.array(ledger.phash[rows]),
        "split": pa.array(SPLITS).take(_or_null(ledger.split[rows])),
        "group_id": pc.if_else(pa.array(first != NONE), image_ids.texts(ledger.ids[first]), None),
        "batch": pa.array(ledger.batch[rows]),
        "shard": pa.repeat(shard, len(rows)),
        "group": pa.array(ledger.names, pa.string()).take(_or_null(ledger.group[rows])),
    }
    return pa.table(columns)


def _or_null(codes: NDArray[Any]) -> pa.Array:
    return pa.array(codes.astype(np.int32), mask=codes == NONE)


def _stored(path: Path, shard: str, ids: pa.Array, scan: Scan) -> pa.Table:
    """Return the columns STORED of images of a shard, in their order."""
    file = path if path.is_file() else path / f"{shard}.parquet"  # one file: the format of earlier versions
    tables_of = [SCHEMAS[LEDGER].empty_table().select(STORED)]
    if file.exists():
        with reading(file):
            tables_of.append(pq.read_table(file, columns=STORED))
    at = pc.index_in(ids, value_set=tables_of[-1]["image_id"].combine_chunks())
    if at.null_count:
        tables_of += [table.select(STORED) for table in scan.packed_tables([shard])]
    rows = pa.concat_tables(tables_of)
    return rows.take(pc.index_in(ids, value_set=rows["image_id"].combine_chunks()))


def _manifest_parts(path: Path, built: Built) -> Iterator[tuple[str, pa.Table]]:
    """Join the columns of images, which are those of the new ledger at `path`, and of files."""
    for shard, rows in rows_of_shards(built.ledger):
        files = built.file_of[rows]
        if (files != NONE).any():
            yield shard, _manifest_part(path / f"{shard}.parquet", files, built)


def _manifest_part(path: Path, files: NDArray[np.int32], built: Built) -> pa.Table:
    names = [name for name in SCHEMAS[MANIFEST].names if name in SCHEMAS[LEDGER].names]
    images = pq.read_table(path, columns=names)
    rows = np.flatnonzero(files != NONE)
    rows = rows[np.argsort(images["offset"].to_numpy()[rows], kind="stable")]
    if len(rows) < len(images) or (np.diff(rows) != 1).any():
        images = images.take(pa.array(rows))
    schema = pa.schema([SCHEMAS[MANIFEST].field(name) for name in OF_FILES])
    own = pa.Table.from_pandas(built.files[OF_FILES].iloc[files[rows]], schema=schema, preserve_index=False)
    for name in OF_FILES:
        images = images.append_column(name, own[name])
    labels = built.files["label"].cat
    index = np.array([built.classes.get(label, tables.NO_INDEX) for label in labels.categories], np.int32)
    return images.append_column("class_index", pa.array(index[labels.codes.to_numpy()[files[rows]]]))
