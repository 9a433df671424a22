"""A model's logits for images of a dataset: from cached features where there are any, else computed as they were."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.features import feature_files
from rootstock.features.reader import Features
from rootstock.images.array_store import ArrayStore
from rootstock.model.model import Model
from rootstock.system import progress


@dataclass(frozen=True)
class Scores:
    """A model's logits (n, k) for images, and how unlike its training images they are (n,), 0 where it cannot tell."""

    logits: NDArray[np.float32]
    novelty: NDArray[np.float32]

    @classmethod
    def of(cls, model: Model, features: NDArray[np.float32]) -> "Scores":
        """Return the scores of features (n, width)."""
        novelty = model.novelty.score(features) if model.novelty else np.zeros(len(features), np.float32)
        return cls(model.head.logits(features), novelty)

    @classmethod
    def joined(cls, parts: list["Scores"]) -> "Scores":
        """Put the scores of several groups of images together."""
        return cls(np.concatenate([part.logits for part in parts]), np.concatenate([part.novelty for part in parts]))


def score(
    model: Model, rows: pd.DataFrame, images_dir: Path, features_dir: Path | None = None, what: str = "evaluate",
    store: ArrayStore | None = None,
) -> Scores:  # fmt: skip
    """Return a model's scores; nothing is decoded whose features are in a file.

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
    scores = Scores(np.empty((len(rows), len(model.classes)), np.float32), np.empty(len(rows), np.float32))
    for chosen in (cached, ~cached):
        if not chosen.any():
            continue
        if folder and chosen is cached:
            found = Scores.joined([Scores.of(model, x) for x, _ in Features(folder, rows[chosen])])
        else:
            found = _computed(model, rows[chosen], images_dir, what, store)
        scores.logits[chosen], scores.novelty[chosen] = found.logits, found.novelty
    return scores


def _has_features(folder: Path, shard: str) -> bool:
    return feature_files.is_intact(folder / f"{shard}.parquet")


def _computed(model: Model, rows: pd.DataFrame, images_dir: Path, what: str, store: ArrayStore | None) -> Scores:
    return Scores.joined([Scores.of(model, x) for x in features(model, rows, images_dir, what, store)])


def features(
    model: Model, rows: pd.DataFrame, images_dir: Path, what: str, store: ArrayStore | None
) -> Iterator[NDArray[np.float32]]:
    """Yield the features (n, width) of images, computed, a group at a time."""
    with progress.bar(what, len(rows)) as advance:
        for x in model.extractor.of_images(rows, images_dir, store):
            yield x
            advance(len(x))
