"""Stream cached features with their labels, one row group at a time; small sets are kept in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rootstock.dataset import image_ids, tables
from rootstock.dataset.tables import Labels
from rootstock.features import feature_files
from rootstock.system.errors import SourceError

KEPT_BYTES = 512 * 2**20  # smaller sets are kept in memory; larger ones are read again at every pass


class Features:
    """The features of some images, in chunks that can be iterated any number of times.

    A set of up to KEPT_BYTES is kept in memory after the first pass; a larger one is streamed from disk at every pass.

    Args:
        folders: of one feature key, or of several; each image then occurs once per folder.
        rows: of the manifest (image_id, shard, offset, class_index; label, if multi-label); chunks come in shard order.
        classes: in order; needed for the labels of a multi-label dataset.

    Raises:
        SourceError: features of a shard or an image are missing.
        DamagedError: a feature file does not match its digest.
    """

    def __init__(self, folders: Path | Sequence[Path], rows: pd.DataFrame, classes: Sequence[str] = ()) -> None:
        self.folders = [folders] if isinstance(folders, Path) else list(folders)
        columns = ["image_id", "class_index", "shard", "offset", *(["label"] if tables.is_multi_label(rows) else [])]
        self.classes = classes
        self.rows = rows[columns].sort_values(["shard", "offset"], ignore_index=True)
        own = tables.labels_of_rows(self.rows, classes)
        self.labels: Labels = np.concatenate([own] * len(self.folders))
        self.width = 0 if rows.empty else feature_files.width_of(_file(self.folders[0], self.rows["shard"].iloc[0]))
        self._kept: list[tuple[NDArray[np.float32], Labels]] | None = None
        self._chosen: list[tuple[NDArray[np.float32], Selection]] | None = None  # rows of what another one keeps
        self._joined: list[Selection] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], Labels]]:
        """Yield features (n, width) float32 and labels: (n,) int64, or (n, k) bool of any number of classes."""
        if self._chosen is not None:
            for features, selection in self._chosen:
                yield from selection.of(features)
            return
        if self._kept is None and self.fits_into_memory:
            self._kept = list(self._stream())
        yield from self._kept if self._kept is not None else self._stream()

    def keep(self) -> "Features":
        """Read the features now if they are few enough to be kept in memory; threads would each read them."""
        if self.fits_into_memory:
            next(iter(self), None)
        return self

    def subset(self, rows: pd.DataFrame, classes: Sequence[str] | None = None) -> "Features":
        """Return the features of some of the images; those that are kept in memory are not read again.

        Args:
            rows: some of the rows, each once; their labels may be others.
            classes: some of the classes, if images have any number of them; None for all.
        """
        part = Features(self.folders, rows, self.classes if classes is None else classes)
        if self._kept is not None:
            wanted = np.tile(image_ids.is_in(self.rows["image_id"], part.rows["image_id"]), len(self.folders))
            chosen = np.split(wanted, np.cumsum([len(x) for x, _ in self._kept])[:-1])
            labels = np.split(part.labels, np.cumsum([here.sum() for here in chosen])[:-1])
            part._chosen = list(zip([x for x, _ in self._kept], map(Selection, chosen, labels), strict=True))
        return part

    @property
    def fits_into_memory(self) -> bool:
        """Tell whether the set is kept in memory, so that only the first pass reads it."""
        return 4 * len(self) * self.width <= KEPT_BYTES

    def _stream(self) -> Iterator[tuple[NDArray[np.float32], Labels]]:
        by_shard = {str(shard): rows for shard, rows in self.rows.groupby("shard", sort=True)}
        rows_of = {_file(folder, shard): rows for folder in self.folders for shard, rows in by_shard.items()}
        if self._joined is None:
            self._joined = [part for path, rows in rows_of.items() for part in _join(path, rows, self.classes)]
        for selection, features in zip(self._joined, feature_files.read_features(list(rows_of)), strict=True):
            yield from selection.of(features)


def read(folder: Path, rows: pd.DataFrame) -> NDArray[np.float32]:
    """Read the features (n, width) of images, in the order of the rows.

    Args:
        folder: of one feature key, or of a cache that has only one.
        rows: of the manifest.

    Raises:
        SourceError: features of a shard or an image are missing, or the cache has those of several keys.
        DamagedError: a feature file does not match its digest.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} does not exist; expected a folder of features, such as data/features")
    if not any(folder.glob("*.parquet")):
        keys = sorted({path.parent for path in folder.glob("*/*.parquet")})
        if len(keys) != 1:
            found = f"features of several kinds; name one of {', '.join(map(str, keys))}" if keys else "no features"
            raise SourceError(f"{folder} has {found}")
        [folder] = keys
    features = Features(folder, rows)
    parts = [np.empty((0, features.width), np.float32), *(found for found, _ in features)]
    order = rows.reset_index(drop=True).sort_values(["shard", "offset"]).index
    return np.concatenate(parts)[np.argsort(order)]


@dataclass(frozen=True)
class Selection:
    """The wanted rows of a row group, None for all of them, and their labels."""

    rows: NDArray[np.bool_] | None
    labels: Labels

    def of(self, features: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32], Labels]]:
        """Yield the wanted features of the row group with their labels, if there are any."""
        if len(self.labels):
            yield features if self.rows is None else features[self.rows], self.labels


def _join(path: Path, rows: pd.DataFrame, classes: Sequence[str]) -> Iterator[Selection]:
    """Yield which rows of each row group of a file are wanted.

    Raises:
        SourceError: the file lacks an image, or has one twice.
    """
    ids = feature_files.read_ids(path)
    wanted = pa.array(rows["image_id"], pa.large_string(), from_pandas=True)
    place_of = pc.fill_null(pc.index_in(ids.cast(pa.large_string()), value_set=wanted), -1).to_numpy()
    here = place_of >= 0
    if not np.array_equal(np.sort(place_of[here]), np.arange(len(rows))):
        raise SourceError(
            f"{path}: has {len(np.unique(place_of[here])):,} of the {len(rows):,} expected images; remove the file and "
            "run extract again"
        )
    ends = np.cumsum([len(chunk) for chunk in ids.chunks])[:-1]
    labels = tables.labels_of_rows(rows, classes)
    for places in np.split(place_of, ends):
        chosen = places >= 0
        yield Selection(None if chosen.all() else chosen, labels[places[chosen]])


def _file(folder: Path, shard: str) -> Path:
    path = folder / f"{shard}.parquet"
    if not path.exists():
        raise SourceError(f"{path} is missing: run extract first, or `dvc pull` it")
    feature_files.check(path)
    return path
