"""Stream cached features with their labels, one row group at a time; small sets are kept in memory."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.features import feature_files
from rootstock.system.errors import SourceError

KEPT_BYTES = 512 * 2**20  # smaller sets are kept in memory; larger ones are read again at every pass


class Features:
    """The features of some images, in chunks that can be iterated any number of times.

    A set of up to KEPT_BYTES is kept in memory after the first pass; a larger one is streamed from disk at every pass.

    Args:
        folders: of one feature key, or of several; each image then occurs once per folder.
        rows: of the manifest (image_id, shard, class_index); chunks come in shard order.

    Raises:
        SourceError: features of a shard or an image are missing.
        DamagedError: a feature file does not match its digest.
    """

    def __init__(self, folders: Path | Sequence[Path], rows: pd.DataFrame) -> None:
        self.folders = [folders] if isinstance(folders, Path) else list(folders)
        columns = ["image_id", "class_index", "shard", "offset"]
        self.rows = rows[columns].sort_values(["shard", "offset"], ignore_index=True)
        self.labels = np.tile(self.rows["class_index"].to_numpy(np.int64), len(self.folders))
        self.width = 0 if rows.empty else feature_files.width_of(_file(self.folders[0], self.rows["shard"].iloc[0]))
        self._kept: list[tuple[NDArray[np.float32], NDArray[np.int64]]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Yield features (n, width) float32 and labels (n,) int64."""
        if self._kept is None and 4 * len(self) * self.width <= KEPT_BYTES:
            self._kept = list(self._stream())
        yield from self._kept if self._kept is not None else self._stream()

    def _stream(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        by_shard = {str(shard): rows for shard, rows in self.rows.groupby("shard", sort=True)}
        for folder in self.folders:
            rows_of = {_file(folder, shard): rows for shard, rows in by_shard.items()}
            for path, chunks in groupby(feature_files.read(list(rows_of)), key=lambda chunk: chunk[0]):
                yield from _of_shard(path, rows_of[path], chunks)


def _of_shard(
    path: Path, rows: pd.DataFrame, chunks: Iterator[tuple[Path, NDArray[np.str_], NDArray[np.float32]]]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Select the wanted rows of one file, with their labels."""
    wanted = pd.Series(rows["class_index"].to_numpy(np.int64), index=rows["image_id"].to_numpy())
    found, unique = 0, set[str]()
    for _, ids, features in chunks:
        labels = wanted.reindex(ids)
        here = labels.notna().to_numpy()
        found += int(here.sum())
        unique.update(ids[here])
        if here.all():
            yield features, labels.to_numpy(np.int64)
        elif here.any():
            yield features[here], labels.to_numpy()[here].astype(np.int64)
    if found != len(rows) or len(unique) != found:
        raise SourceError(
            f"{path}: has {len(unique)} of the {len(rows)} expected images; remove the file and run extract again"
        )


def _file(folder: Path, shard: str) -> Path:
    path = folder / f"{shard}.parquet"
    if not path.exists():
        raise SourceError(f"{path} is missing: run extract first, or `dvc pull` it")
    feature_files.check(path)
    return path
