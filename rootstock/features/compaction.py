"""Shards whose images are mostly gone, written anew with those that are left.

A shard is never changed, so an image that leaves the manifest leaves its bytes behind. Compaction copies what is left
in such shards, bytes and features, into new ones, has ledger and manifest say so, and removes the old ones. The ledger
keeps a row of every image that loses its bytes: should it return, it is packed anew and has its split of before.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rootstock.dataset import shards, tables
from rootstock.dataset.tables import UNPACKED, Dataset
from rootstock.features import feature_files
from rootstock.ingest import snapshot
from rootstock.ingest.scan import Scan, use
from rootstock.system import progress
from rootstock.system.errors import ParamsError, SourceError
from rootstock.system.files import last_used, mark_used, replacing, sweep

log = logging.getLogger(__name__)
SHARE = 0.5  # of a shard's image bytes: one that has less left costs more than it holds


@dataclass(frozen=True)
class Waste:
    """Bytes of images that nothing needs any more: in all shards, and in those that a compaction would write anew."""

    images: int
    bytes: int
    shards: tuple[str, ...]
    freed: int


@dataclass(frozen=True)
class Compacted:
    """What a compaction did: shards before and after, images copied and dropped, bytes of shards freed."""

    removed: int
    written: int
    copied: int
    dropped: int
    freed: int


def check(share: float) -> None:
    """Check a share.

    Raises:
        ParamsError: it is none.
    """
    if not 0 < share <= 1:
        raise ParamsError(f"compact is {share:g}; expected a share above 0 and up to 1: less than that is left")


def waste(data: Dataset, share: float = SHARE) -> Waste:
    """Find what a compaction would free.

    Args:
        data: the data set.
        share: shards of which less than this is left, by the bytes of images, are compacted.

    Raises:
        ParamsError: `share` is no share.
    """
    check(share)
    packed = data.ledger[data.ledger["shard"] != UNPACKED]
    dead = packed[~_needed(packed, data.manifest)]
    lost, had = (rows.groupby("shard")["size"].sum() for rows in (dead, packed))
    left = 1 - lost.reindex(had.index, fill_value=0) / had
    sparse = left.index[left < share]
    return Waste(len(dead), int(lost.sum()), tuple(sparse), int(lost.reindex(sparse).sum()))


def _needed(ledger: pd.DataFrame, manifest: pd.DataFrame) -> "pd.Series[bool]":
    """Mark what keeps its bytes: the images of the manifest, and those that every ingest tries to give a split."""
    return ledger["image_id"].isin(manifest["image_id"]) | ledger["split"].isna()


def compact(
    images_dir: Path,
    dataset_dir: Path,
    features: Sequence[Path],
    scratch: Path,
    shard_bytes: int,
    share: float = SHARE,
) -> Compacted:
    """Write the shards anew that hold little, with what is left in them; of a run that was killed, clear up first.

    New files come first, then ledger and manifest name them, then the old ones go: killed at any moment, nothing is
    lost, and what is left over goes at the next compaction, or the next ingest.

    Args:
        images_dir: the shards.
        dataset_dir: the manifest and its companions.
        features: folders of features, `<key>/<shard>.parquet` each; no image is pushed through a backbone again.
        scratch: where the scan cache is.
        shard_bytes: about how large a new shard becomes.
        share: see `waste`.

    Raises:
        ParamsError: `share` is no share.
        SourceError: there is no data set, or a shard is not there.
    """
    for folder in (images_dir, dataset_dir, *features):
        sweep(folder)
    return use(scratch, partial(_compact, images_dir, dataset_dir, features, shard_bytes, share))


def _compact(
    images_dir: Path, dataset_dir: Path, features: Sequence[Path], shard_bytes: int, share: float, scan: Scan
) -> Compacted:
    data = tables.load(dataset_dir)
    if data.ledger.empty:
        raise SourceError(f"{dataset_dir} has no data set to go by: run ingest first, or `dvc pull` it")
    keys = [key for folder in features for key in _keys(folder)]
    with _ages_kept(keys):
        scan.forget_packed_but_in(shards.names(images_dir))
        snapshot.drop_unrecorded(data.ledger, images_dir, scan)
        _sweep_features(keys, {*data.ledger["shard"], *shards.names(images_dir)})
        before = _bytes(images_dir)
        old = waste(data, share).shards
        _check_there(old, images_dir)
        rows = data.ledger[data.ledger["shard"].isin(old)].sort_values(["shard", "offset"])
        left = rows[_needed(rows, data.manifest)]
        moved = _pack(left, keys, images_dir, shard_bytes)
        remaining = [name for name in shards.names(images_dir) if name not in old]
        scan.forget_packed_but_in(remaining)  # before the switch: what neither it nor the ledger knows, ingest removes
        tables.save(dataset_dir, _switched(data, rows, moved, images_dir, remaining))
        _remove(old, images_dir, keys)
    return Compacted(len(old), moved["shard"].nunique(), len(left), len(rows) - len(left), before - _bytes(images_dir))


def _check_there(old: Iterable[str], images_dir: Path) -> None:
    for shard in old:
        if not (path := shards.path_of(images_dir, shard)).exists():
            raise SourceError(f"{path} is not there: restore it by `dvc pull` or `dvc checkout`")


def _keys(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.exists() else []


@contextmanager
def _ages_kept(keys: Sequence[Path]) -> Iterator[None]:
    """Leave folders as old as they are: a compaction uses no features."""
    ages = {key: last_used(key) for key in keys}
    try:
        yield
    finally:
        for key, age in ages.items():
            mark_used(key, age)


def _sweep_features(keys: Sequence[Path], known: set[str]) -> None:
    """Remove the features of shards that are gone; shards that are not here but in the ledger are elsewhere."""
    for path in (path for key in keys for path in sorted(key.glob("*.parquet"))):
        if path.stem not in known:
            feature_files.remove(path)


def _pack(rows: pd.DataFrame, keys: Sequence[Path], images_dir: Path, shard_bytes: int) -> pd.DataFrame:
    """Copy images into new shards, and their features into new files; returns image_id, shard, offset and size."""
    number = max(map(shards.number_of, shards.names(images_dir)), default=-1) + 1
    moved: list[pd.DataFrame] = [rows[["image_id", "shard", "offset", "size"]].head(0)]
    with (
        shards.Writer(images_dir, number, shard_bytes) as writer,
        shards.Reader(images_dir) as reader,
        progress.bar("compact", len(rows)) as advance,
    ):
        for holders, group in _grouped(rows, keys):
            waiting: list[
                tuple[str, str, shards.Place]
            ] = []  # image, the shard it comes from, its place in the open one
            columns = (group[name] for name in ("image_id", "format", "shard", "offset", "size"))
            for count, (image, kind, shard, offset, size) in enumerate(zip(*columns, strict=True), start=1):
                waiting.append((image, shard, writer.add(image, kind, reader.image(shard, offset, size, image))))
                if writer.full or count == len(group):
                    moved.append(_close(writer, waiting, holders))
                    waiting = []
                advance(1)
    return pd.concat(moved, ignore_index=True)


def _grouped(rows: pd.DataFrame, keys: Sequence[Path]) -> Iterator[tuple[list[Path], pd.DataFrame]]:
    """Part images by which keys have their features: in one shard, some would lack what others have."""
    holders = {
        shard: tuple(key for key in keys if (key / f"{shard}.parquet").exists()) for shard in rows["shard"].unique()
    }
    for having in dict.fromkeys(holders.values()):
        yield list(having), rows[rows["shard"].map(holders.get) == having]


def _close(
    writer: shards.Writer, waiting: Sequence[tuple[str, str, shards.Place]], holders: Iterable[Path]
) -> pd.DataFrame:
    """Finish a shard, and bring the features of its images together in the file of each key."""
    shard = writer.close()
    origins: dict[str, list[str]] = {}
    for image, origin, _ in waiting:
        origins.setdefault(origin, []).append(image)
    for key in holders:
        move_features(key, origins, shard)
    places = [(image, shard, place.offset, place.size) for image, _, place in waiting]
    return pd.DataFrame(places, columns=["image_id", "shard", "offset", "size"])


def move_features(key: Path, origins: dict[str, list[str]], shard: str) -> None:
    """Copy the features of images from the files of their old shards to that of a new one, row for row.

    Args:
        key: the folder of one key.
        origins: the images by old shard, in the order of the new one.
        shard: the new one.
    """
    sources = {key / f"{old}.parquet": images for old, images in origins.items()}
    for path, images in sources.items():
        if not feature_files.is_whole(path):
            log.warning("%s: is not what extract wrote; its images will be extracted again", path)
            return
        there = pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()
        wanted = set(images)
        if list(dict.fromkeys(name for name in there if name in wanted)) != images:
            log.warning("%s: lacks images of its shard; they will be extracted again", path)
            return
    writing = feature_files.sealing if feature_files.is_sealed(key) else replacing
    with writing(key / f"{shard}.parquet") as temporary:
        schema = pq.read_schema(next(iter(sources)))
        feature = schema.field("feature").type
        size = feature_files.rows_a_group(feature.list_size, np.dtype(feature.value_type.to_pandas_dtype()).name)
        with pq.ParquetWriter(temporary, schema, **feature_files.LAYOUT) as out:
            for table in _in_groups((rows for path, names in sources.items() for rows in _rows_of(path, names)), size):
                out.write_table(table)


def _rows_of(path: Path, images: Sequence[str]) -> Iterator[pa.Table]:
    wanted = pa.array(images)
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            yield table.take(pc.indices_nonzero(pc.is_in(table["image_id"], value_set=wanted)))


def _in_groups(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Join and cut tables to row groups of one size."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= size:
            joined = pa.concat_tables(waiting).combine_chunks()
            yield joined[:size]
            waiting = [joined[size:]]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting).combine_chunks()


def _switched(
    data: Dataset, rows: pd.DataFrame, moved: pd.DataFrame, images_dir: Path, remaining: list[str]
) -> Dataset:
    """Have ledger, manifest and summary name the new places; a manifest that a kill left behind comes along."""
    new = moved.set_index("image_id").reindex(rows["image_id"])
    new = new.fillna({"shard": UNPACKED, "offset": 0, "size": 0}).set_axis(rows.index)
    ledger = data.ledger.copy()
    ledger.loc[rows.index, ["shard", "offset", "size"]] = new.astype({"offset": "int64", "size": "int64"})
    ledger = ledger.sort_values(["shard", "offset"], kind="stable", ignore_index=True)
    manifest = snapshot.place(data.manifest.drop_duplicates("image_id"), ledger)
    summary = {**data.summary, "shards": snapshot.count_shards(ledger, images_dir, remaining)}
    return replace(data, manifest=manifest, ledger=ledger, summary=summary)


def _remove(old: Iterable[str], images_dir: Path, keys: Sequence[Path]) -> None:
    """Remove old shards, each after its features: those of a shard that is gone are harder to come by."""
    for shard in old:
        for key in keys:
            feature_files.remove(key / f"{shard}.parquet")
        shards.path_of(images_dir, shard).unlink()


def _bytes(images_dir: Path) -> int:
    return sum(shards.path_of(images_dir, shard).stat().st_size for shard in shards.names(images_dir))
