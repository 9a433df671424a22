"""The cache of features: which folder holds which, and what is in it as a stream with labels.

A file depends on image bytes and backbone alone: neither a label nor a split is in it, so that relabelling or
splitting anew rewrites none. Its folder is a short digest of everything that decides the numbers.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock import feature_files, params
from rootstock.architectures import PENULTIMATE
from rootstock.errors import SourceError
from rootstock.files import write

FORMAT_VERSION = 2
KEPT_BYTES = 512 * 2**20  # features that fit are read once and kept; more are read again at every pass
AUTO: Literal["auto"] = "auto"
Engine = Literal["eager", "compile", "onnxruntime", "openvino"]


def meaning_of(description: dict[str, Any], settings: params.Extract, engine: str, view: int = 0) -> dict[str, Any]:
    """Spell out everything that decides the numbers of a backbone's features.

    Args:
        description: the contents of backbone.json.
        settings: the section `extract` of params.yaml.
        engine: that computes them.
        view: 0 is the image itself, others are augmented.
    """
    depth = description.get("depths", {}).get(settings.layer)
    layer = depth["layer"] if depth else settings.layer  # a depth and the module that it means are the same
    return {
        "backbone": description["name"],
        "digest": description["digest"],
        "transform": description["transform"],
        "layer": layer,
        **({"pooling": settings.pooling} if layer != PENULTIMATE else {}),  # the penultimate layer has its own
        "dtype": settings.dtype,
        "engine": engine,
        "precision": settings.precision,
        **({"view": view, "augment": settings.view_augment} if view else {}),  # it sees all pixels in any case
        **({"decode": settings.decode} if not view else {}),
        "format": FORMAT_VERSION,
    }


def key_of(meaning: dict[str, Any]) -> str:
    """Name the folder of features: a short digest of their meaning."""
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]


def find(description: dict[str, Any], settings: params.Extract, features_dir: Path) -> list[Path]:
    """Name the folders that hold a backbone's features: of the images themselves, then of each augmented view.

    Raises:
        SourceError: `extract.engine` is auto, and nothing has been extracted yet.
    """
    engine = settings.engine if settings.engine != AUTO else engine_of(description, settings, features_dir)
    if engine is None:
        raise SourceError(f"{features_dir} has no features of this backbone: run extract first, or `dvc pull` it")
    meanings = (meaning_of(description, settings, engine, view) for view in range(settings.views + 1))
    return [features_dir / key_of(meaning) for meaning in meanings]


def engine_of(description: dict[str, Any], settings: params.Extract, features_dir: Path) -> Engine | None:
    """Say which engine `auto` has been so far for these features; None where it has to be chosen."""
    path = _note(description, settings, features_dir)
    if not path.exists():
        return None
    engine: Engine = json.loads(path.read_bytes())["engine"]
    return engine


def note_engine(description: dict[str, Any], settings: params.Extract, features_dir: Path, engine: str) -> None:
    """Record which engine `auto` is for these features: it stays, so that a cache is of one engine.

    The note is `<digest of the meaning without its engine>.json`, with the key of the folder that it stands for.
    """
    if engine_of(description, settings, features_dir) != engine:
        key = key_of(meaning_of(description, settings, engine))
        content = json.dumps({"engine": engine, "key": key}, indent=2) + "\n"
        write(_note(description, settings, features_dir), content)


def _note(description: dict[str, Any], settings: params.Extract, features_dir: Path) -> Path:
    return features_dir / f"{key_of(meaning_of(description, settings, AUTO))}.json"


class Features:
    """The features of some images, as chunks that can be walked any number of times.

    What fits into KEPT_BYTES is kept after the first walk; more is streamed from the files each time.

    Args:
        folders: of one key, or of several: each image is then there as often, once a folder.
        rows: of the manifest (image_id, shard, class_index); chunks come in the order of shards.

    Raises:
        SourceError: features of a shard or an image are missing.
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
    """Pick the wanted rows of one file, with their labels."""
    wanted = pd.Series(rows["class_index"].to_numpy(np.int64), index=rows["image_id"].to_numpy())
    found = 0
    for _, ids, features in chunks:
        labels = wanted.reindex(ids)
        here = labels.notna().to_numpy()
        found += int(here.sum())
        if here.all():
            yield features, labels.to_numpy(np.int64)
        elif here.any():
            yield features[here], labels.to_numpy()[here].astype(np.int64)
    if found != len(rows):
        raise SourceError(
            f"{path}: holds {found} of the {len(rows)} images wanted; remove the file and run extract again"
        )


def _file(folder: Path, shard: str) -> Path:
    path = folder / f"{shard}.parquet"
    if not path.exists():
        raise SourceError(f"{path} is not there: run extract first, or `dvc pull` it")
    return path
