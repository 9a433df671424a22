"""Frozen features of images, cached as Parquet: one file a shard, computed once, read as a stream.

A file depends on image bytes and backbone alone: neither a label nor a split is in it, so that relabelling or
splitting anew rewrites none. Its folder is a short digest of everything that decides the numbers, and the file's
metadata spells that out.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import nn

from rootstock import params, pixels, progress, shards
from rootstock.architectures import PENULTIMATE
from rootstock.backbones import Backbone
from rootstock.errors import ParamsError, SourceError
from rootstock.files import replacing, sweep
from rootstock.pixels import Normalise, Ref

FORMAT_VERSION = 1
ROWS_A_GROUP = 4096  # 20 MB of 1,280 float32: large enough to read fast, small enough to stream
KEPT_BYTES = 512 * 2**20  # features that fit are read once and kept; more are read again at every pass


@dataclass(frozen=True)
class Extracted:
    """What an extraction did."""

    images: int
    computed: int
    key: str


def key_of(description: dict[str, Any], settings: params.Extract) -> tuple[str, dict[str, Any]]:
    """Name the cache of a backbone's features, and spell out what the name stands for.

    Args:
        description: the contents of backbone.json.
        settings: the section `extract` of params.yaml.
    """
    depth = description.get("depths", {}).get(settings.layer)
    layer = depth["layer"] if depth else settings.layer  # a depth and the module that it means are the same
    pooled = {"pooling": settings.pooling} if layer != PENULTIMATE else {}  # the penultimate layer has its own
    meaning = {
        "backbone": description["name"],
        "digest": description["digest"],
        "transform": description["transform"],
        "layer": layer,
        **pooled,
        "dtype": settings.dtype,
        "engine": "torch eager",
        "format": FORMAT_VERSION,
    }
    canonical = json.dumps(meaning, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12], meaning


def extract(
    backbone: Backbone, settings: params.Extract, images_dir: Path, features_dir: Path, *, else_in: Path | None = None
) -> Extracted:
    """Compute the features of every shard that has none yet.

    Args:
        backbone: with its weights, in evaluation mode, cut at the layer of the settings.
        settings: the section `extract` of params.yaml.
        images_dir: the shards.
        features_dir: gets `<key>/<shard>.parquet`; what is there stays as it is.
        else_in: a folder like that one; files that it has are copied from there.

    Raises:
        ParamsError: float16 is too small for the features of this backbone.
    """
    key, meaning = key_of(backbone.description, settings)
    folder = features_dir / key
    folder.mkdir(parents=True, exist_ok=True)
    sweep(features_dir)
    contents = {shard: list(shards.members(images_dir, shard)) for shard in shards.names(images_dir)}
    if else_in:
        _copy(else_in / key, folder, contents)
    missing = {shard: members for shard, members in contents.items() if not (folder / f"{shard}.parquet").exists()}
    device = pixels.device()
    network = nn.Sequential(Normalise(backbone.transform), backbone.network).to(device)
    network = network.to(memory_format=torch.channels_last).eval()
    total = sum(len(members) for members in missing.values())
    with progress.bar("extract", total) as advance, shards.Reader(images_dir) as reader:
        for shard, members in missing.items():
            ids = [image_id for image_id, _ in members]
            refs = [Ref(shard, place.offset, place.size) for _, place in members]
            batches = pixels.batches(reader, refs, backbone.transform, settings.batch_size)
            with replacing(folder / f"{shard}.parquet") as temporary:
                computed = _forward(network, batches, device)
                _write(temporary, ids, computed, backbone.width, settings.dtype, meaning, advance)
    return Extracted(sum(len(members) for members in contents.values()), total, key)


def _copy(source: Path, target: Path, wanted: Iterable[str]) -> None:
    """Copy the features of shards that are here now; a comparison may have seen others, which are gone since."""
    for name in (f"{shard}.parquet" for shard in wanted):
        if (source / name).exists() and not (target / name).exists():
            with replacing(target / name) as temporary:
                shutil.copy(source / name, temporary)


def _forward(
    network: nn.Module, batches: Iterator[torch.Tensor], device: torch.device
) -> Iterator[NDArray[np.float32]]:
    with torch.inference_mode():
        for batch in batches:
            features: torch.Tensor = network(batch.to(device, non_blocking=True))
            yield features.float().cpu().numpy()


def _write(
    path: Path,
    ids: list[str],
    batches: Iterator[NDArray[np.float32]],
    width: int,
    dtype: str,
    meaning: dict[str, Any],
    advance: progress.Advance,
) -> None:
    """Write a shard's rows a row group at a time."""
    scalar = pa.float16() if dtype == "float16" else pa.float32()
    schema = pa.schema(
        [("image_id", pa.string()), pa.field("feature", pa.list_(scalar, width), nullable=False)],
        metadata={"rootstock": json.dumps(meaning, sort_keys=True)},
    )
    waiting: list[NDArray[Any]] = []
    written = 0
    # Feature values hardly repeat: a dictionary or a codec costs time and saves next to nothing.
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:

        def flush() -> None:
            nonlocal written, waiting
            values = np.concatenate(waiting).reshape(-1)
            feature = pa.FixedSizeListArray.from_arrays(pa.array(values, scalar), width)
            names = pa.array(ids[written : written + len(feature)])
            writer.write_table(pa.Table.from_arrays([names, feature], schema=schema))
            written, waiting = written + len(feature), []

        for batch in batches:
            waiting.append(_narrowed(batch, dtype))
            advance(len(batch))
            if sum(map(len, waiting)) >= ROWS_A_GROUP:
                flush()
        if waiting:
            flush()


def _narrowed(batch: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        narrow = batch.astype(dtype)
    if not np.isfinite(narrow).all():
        raise ParamsError(
            f"params.yaml: extract.dtype is {dtype!r}, but the features of this backbone go up to "
            f"{np.abs(batch).max():g}; expected float32, or other backbone.weights."
        )
    return narrow


class Features:
    """The features of some images, as chunks that can be walked any number of times.

    What fits into KEPT_BYTES is kept after the first walk; more is streamed from the files each time.

    Args:
        folder: of one key.
        rows: of the manifest (image_id, shard, class_index); chunks come in the order of shards.

    Raises:
        SourceError: features of a shard or an image are missing.
    """

    def __init__(self, folder: Path, rows: pd.DataFrame) -> None:
        self.folder, self.rows = folder, rows.sort_values(["shard", "offset"], ignore_index=True)
        self.labels = self.rows["class_index"].to_numpy(np.int64)
        self.width = _width(folder, self.rows)
        self._kept: list[tuple[NDArray[np.float32], NDArray[np.int64]]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Yield features (n, width) float32 and labels (n,) int64."""
        if self._kept is None and 4 * len(self) * self.width <= KEPT_BYTES:
            self._kept = list(self._stream())
        yield from self._kept if self._kept is not None else self._stream()

    def _stream(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        for shard, rows in self.rows.groupby("shard", sort=True):
            wanted = pd.Series(rows["class_index"].to_numpy(np.int64), index=rows["image_id"].to_numpy())
            found = 0
            with pq.ParquetFile(_file(self.folder, str(shard))) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    labels = wanted.reindex(table["image_id"].to_numpy())
                    here = labels.notna().to_numpy()
                    found += int(here.sum())
                    if here.any():
                        yield _matrix(table)[here], labels.to_numpy()[here].astype(np.int64)
            if found != len(rows):
                raise SourceError(
                    f"{_file(self.folder, str(shard))}: holds {found} of the {len(rows)} images wanted; "
                    "remove the file and run extract again"
                )


def _matrix(table: pa.Table) -> NDArray[np.float32]:
    column = table["feature"].combine_chunks()
    values = column.values.to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values.reshape(len(table), -1), dtype=np.float32)


def _width(folder: Path, rows: pd.DataFrame) -> int:
    if rows.empty:
        return 0
    return int(pq.read_schema(_file(folder, rows["shard"].iloc[0])).field("feature").type.list_size)


def _file(folder: Path, shard: str) -> Path:
    path = folder / f"{shard}.parquet"
    if not path.exists():
        raise SourceError(f"{path} is not there: run extract first, or `dvc pull` it")
    return path
