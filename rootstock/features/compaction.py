"""Compaction: rewrite shards most of whose images are no longer in the manifest.

A shard is never changed, so an image that leaves the manifest leaves its bytes behind. Compaction copies the remaining
images and their features into new shards, updates ledger and manifest, and removes the old shards. The ledger keeps a
row for every image whose bytes are dropped: if it returns, it is packed again and gets its earlier split.
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
from numpy.typing import NDArray

from rootstock.dataset import image_ids, shards, tables
from rootstock.dataset.tables import UNPACKED, Dataset
from rootstock.features import feature_files
from rootstock.ingest import snapshot
from rootstock.ingest.scan import Scan, with_scan
from rootstock.system import progress
from rootstock.system.errors import ParamsError, SourceError
from rootstock.system.files import last_used, mark_used, replacing, sweep

log = logging.getLogger(__name__)
SHARE = 0.5  # shards with a smaller share of their image bytes still in use are compacted


@dataclass(frozen=True)
class Waste:
    """Unused image bytes: in all shards, and in those that a compaction would rewrite."""

    images: int
    bytes: int
    shards: tuple[str, ...]
    freed: int


@dataclass(frozen=True)
class CompactionResult:
    """What a compaction did: shards removed and written, images copied and dropped, bytes freed."""

    removed: int
    written: int
    copied: int
    dropped: int
    freed: int


def check(share: float) -> None:
    """Check that a threshold is a share.

    Raises:
        ParamsError: `share` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ParamsError(
            f"compact is {share:g}; expected a share above 0 and up to 1: shards with less in use are compacted"
        )


def waste(data: Dataset, share: float = SHARE) -> Waste:
    """Compute what a compaction would free.

    Args:
        data: the dataset.
        share: shards with less than this share of their image bytes in use are compacted.

    Raises:
        ParamsError: `share` is not above 0 and at most 1.
    """
    check(share)
    packed = data.ledger[data.ledger["shard"] != UNPACKED]
    unused = packed[~_needed(packed, data.manifest)]
    unused_bytes, total_bytes = (rows.groupby("shard")["size"].sum() for rows in (unused, packed))
    used_share = 1 - unused_bytes.reindex(total_bytes.index, fill_value=0) / total_bytes
    sparse = used_share.index[used_share < share]
    return Waste(len(unused), int(unused_bytes.sum()), tuple(sparse), int(unused_bytes.reindex(sparse).sum()))


def _needed(ledger: pd.DataFrame, manifest: pd.DataFrame) -> NDArray[np.bool_]:
    """Mark images that keep their bytes: those in the manifest, and those still waiting for a split."""
    return image_ids.is_in(ledger["image_id"], manifest["image_id"]) | ledger["split"].isna().to_numpy()


def compact(
    images_dir: Path,
    dataset_dir: Path,
    features: Sequence[Path],
    scratch: Path,
    shard_bytes: int,
    share: float = SHARE,
) -> CompactionResult:
    """Rewrite sparse shards with the images still in use, after cleaning up what a killed run left.

    New files are written first, then ledger and manifest are switched, then the old files are removed: a kill at any
    moment loses nothing, and leftovers are removed by the next compaction or ingest.

    Args:
        images_dir: the shards.
        dataset_dir: the manifest, ledger and summary.
        features: folders of features, `<key>/<shard>.parquet` each; nothing is extracted again.
        scratch: holds the scan cache.
        shard_bytes: approximate size of a new shard.
        share: see `waste`.

    Raises:
        ParamsError: `share` is not above 0 and at most 1.
        SourceError: there is no dataset, or a shard is missing.
    """
    for folder in (images_dir, dataset_dir, *features):
        sweep(folder)
    return with_scan(scratch, partial(_compact, images_dir, dataset_dir, features, shard_bytes, share))


def _compact(
    images_dir: Path, dataset_dir: Path, features: Sequence[Path], shard_bytes: int, share: float, scan: Scan
) -> CompactionResult:
    data = tables.load(dataset_dir)
    if data.ledger.empty:
        raise SourceError(f"{dataset_dir} holds no dataset: run ingest first, or `dvc pull` it")
    keys = [key for folder in features for key in _keys(folder)]
    with _ages_kept(keys):
        scan.forget_packed_except(shards.names(images_dir))
        snapshot.drop_unrecorded(data.ledger["shard"].unique(), images_dir, scan)
        _sweep_features(keys, {*data.ledger["shard"], *shards.names(images_dir)})
        before = _bytes(images_dir)
        old = waste(data, share).shards
        _check_there(old, images_dir)
        rows = data.ledger[data.ledger["shard"].isin(old)].sort_values(["shard", "offset"])
        left = rows[_needed(rows, data.manifest)]
        moved = _pack(left, keys, images_dir, shard_bytes)
        remaining = [name for name in shards.names(images_dir) if name not in old]
        scan.forget_packed_except(remaining)  # before the switch: ingest removes what neither scan nor ledger knows
        tables.save(dataset_dir, _switched(data, rows, moved, images_dir, remaining))
        _remove(old, images_dir, keys)
    return CompactionResult(
        len(old), moved["shard"].nunique(), len(left), len(rows) - len(left), before - _bytes(images_dir)
    )


def _check_there(old: Iterable[str], images_dir: Path) -> None:
    for shard in old:
        if not (path := shards.path_of(images_dir, shard)).exists():
            raise SourceError(f"{path} is missing: restore it with `dvc pull` or `dvc checkout`")


def _keys(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.exists() else []


@contextmanager
def _ages_kept(keys: Sequence[Path]) -> Iterator[None]:
    """Keep the last-used times of folders: a compaction does not count as use."""
    ages = {key: last_used(key) for key in keys}
    try:
        yield
    finally:
        for key, age in ages.items():
            mark_used(key, age)


def _sweep_features(keys: Sequence[Path], known: set[str]) -> None:
    """Remove the features of deleted shards; shards that are only in the ledger may be on another machine."""
    for path in (path for key in keys for path in sorted(key.glob("*.parquet"))):
        if path.stem not in known:
            feature_files.remove(path)


def _pack(rows: pd.DataFrame, keys: Sequence[Path], images_dir: Path, shard_bytes: int) -> pd.DataFrame:
    """Copy images into new shards and their features into new files; return image_id, shard, offset and size."""
    number = max(map(shards.number_of, shards.names(images_dir)), default=-1) + 1
    moved: list[pd.DataFrame] = [rows[["image_id", "shard", "offset", "size"]].head(0)]
    with (
        shards.Writer(images_dir, number, shard_bytes) as writer,
        shards.Reader(images_dir) as reader,
        progress.bar("compact", len(rows)) as advance,
    ):
        for holders, group in _grouped(rows, keys):
            waiting: list[tuple[str, str, shards.Place]] = []  # image, old shard, place in the new one
            columns = (group[name] for name in ("image_id", "format", "shard", "offset", "size"))
            for count, (image, kind, shard, offset, size) in enumerate(zip(*columns, strict=True), start=1):
                waiting.append((image, shard, writer.add(image, kind, reader.image(shard, offset, size, image))))
                if writer.full or count == len(group):
                    moved.append(_close(writer, waiting, holders))
                    waiting = []
                advance(1)
    return pd.concat(moved, ignore_index=True)


def _grouped(rows: pd.DataFrame, keys: Sequence[Path]) -> Iterator[tuple[list[Path], pd.DataFrame]]:
    """Group images by the keys that have their features, so that a new shard has features for all or none."""
    holders = {
        shard: tuple(key for key in keys if (key / f"{shard}.parquet").exists()) for shard in rows["shard"].unique()
    }
    for having in dict.fromkeys(holders.values()):
        yield list(having), rows[rows["shard"].map(holders.get) == having]


def _close(
    writer: shards.Writer, waiting: Sequence[tuple[str, str, shards.Place]], holders: Iterable[Path]
) -> pd.DataFrame:
    """Close a shard, and write the features of its images under each key."""
    shard = writer.close()
    origins: dict[str, list[str]] = {}
    for image, origin, _ in waiting:
        origins.setdefault(origin, []).append(image)
    for key in holders:
        move_features(key, origins, shard)
    places = [(image, shard, place.offset, place.size) for image, _, place in waiting]
    return pd.DataFrame(places, columns=["image_id", "shard", "offset", "size"])


def move_features(key: Path, origins: dict[str, list[str]], shard: str) -> None:
    """Copy features row by row from the files of old shards to the file of a new one.

    Args:
        key: the folder of one key.
        origins: images by old shard, in the order of the new one.
        shard: the new one.
    """
    sources = {key / f"{old}.parquet": images for old, images in origins.items()}
    for path, images in sources.items():
        if not feature_files.is_intact(path):
            log.warning("%s: digest mismatch; its images will be extracted again", path)
            return
        stored = pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()
        wanted = set(images)
        if list(dict.fromkeys(name for name in stored if name in wanted)) != images:
            log.warning("%s: images of its shard are missing; they will be extracted again", path)
            return
    writing = feature_files.replacing_with_digest if feature_files.has_digests(key) else replacing
    with writing(key / f"{shard}.parquet") as temporary:
        schema = pq.read_schema(next(iter(sources)))
        feature = schema.field("feature").type
        size = feature_files.rows_per_group(feature.list_size, np.dtype(feature.value_type.to_pandas_dtype()).name)
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
    """Regroup tables into row groups of one size."""
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
    """Return the dataset with new places in ledger, manifest and summary, even of a half-written manifest."""
    new = moved.set_index("image_id").reindex(rows["image_id"])
    new = new.fillna({"shard": UNPACKED, "offset": 0, "size": 0}).set_axis(rows.index)
    ledger = data.ledger.copy()
    ledger.loc[rows.index, ["shard", "offset", "size"]] = new.astype({"offset": "int64", "size": "int64"})
    ledger = ledger.sort_values(["shard", "offset"], kind="stable", ignore_index=True)
    manifest = _placed(data.manifest.drop_duplicates("image_id"), ledger)
    summary = {**data.summary, "shards": snapshot.count_shards(ledger.groupby("shard").size(), images_dir, remaining)}
    return replace(data, manifest=manifest, ledger=ledger, summary=summary)


def _placed(images: pd.DataFrame, ledger: pd.DataFrame) -> pd.DataFrame:
    """Add the ledger columns to images, in shard order."""
    own = [name for name in images.columns if name == "image_id" or name not in ledger.columns]
    at = image_ids.places(images["image_id"], ledger["image_id"])
    known = np.flatnonzero(at >= 0)
    places = ledger[["shard", "offset"]].iloc[at[known]].reset_index(drop=True)
    rows = known[places.sort_values(["shard", "offset"]).index]  # each table is copied once, in its final order
    there = images[own].iloc[rows].reset_index(drop=True)
    more = ledger[[name for name in ledger.columns if name not in own]].iloc[at[rows]].reset_index(drop=True)
    return pd.concat([there, more], axis=1).reindex(columns=tables.SCHEMAS[tables.MANIFEST].names)


def _remove(old: Iterable[str], images_dir: Path, keys: Sequence[Path]) -> None:
    """Remove old shards, each after its features, which could not be found once the shard is gone."""
    for shard in old:
        for key in keys:
            feature_files.remove(key / f"{shard}.parquet")
        shards.path_of(images_dir, shard).unlink()


def _bytes(images_dir: Path) -> int:
    return sum(shards.path_of(images_dir, shard).stat().st_size for shard in shards.names(images_dir))
