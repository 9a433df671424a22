"""A model's logits for images of a dataset: from cached features where there are any, else computed as they were."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.features import feature_files
from rootstock.features.reader import Features
from rootstock.images.pixel_store import PixelStore
from rootstock.model.model import Model
from rootstock.system import progress


def logits(
    model: Model, rows: pd.DataFrame, images_dir: Path, features_dir: Path | None = None, what: str = "evaluate",
    store: PixelStore | None = None,
) -> NDArray[np.float32]:  # fmt: skip
    """Return a model's logits (n, k); nothing is decoded whose features are in a file.

    Args:
        model: a head on frozen features, or a fine-tuned network, whose features are in no cache.
        rows: of the manifest, sorted by shard and offset.
        images_dir: the shards.
        features_dir: the cache of features.
        what: name of the progress bar, if images are read.
        store: of decoded images.

    Raises:
        DamagedError: an image or a feature file is not what was written.
    """
    folder = features_dir / model.feature_key if features_dir and model.feature_key else None
    shards = {shard for shard in rows["shard"].unique() if folder and _has_features(folder, shard)}
    cached = rows["shard"].isin(shards).to_numpy()
    scores = np.empty((len(rows), len(model.classes)), np.float32)
    if folder and cached.any():
        scores[cached] = np.concatenate([model.head.logits(x) for x, _ in Features(folder, rows[cached])])
    if not cached.all():
        scores[~cached] = _computed(model, rows[~cached], images_dir, what, store)
    return scores


def _has_features(folder: Path, shard: str) -> bool:
    return feature_files.is_intact(folder / f"{shard}.parquet")


def _computed(
    model: Model, rows: pd.DataFrame, images_dir: Path, what: str, store: PixelStore | None
) -> NDArray[np.float32]:
    scores = []
    with progress.bar(what, len(rows)) as advance:
        for features in model.extractor.of_images(rows, images_dir, store):
            scores.append(model.head.logits(features))
            advance(len(features))
    return np.concatenate(scores)
