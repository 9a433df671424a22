"""A model's logits for images of a dataset: from cached features where there are any, else computed as they were."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.features import feature_files
from rootstock.features.reader import Features
from rootstock.images.array_store import ArrayStore
from rootstock.model.model import Model
from rootstock.system import progress
from rootstock.system.parallel import grouped, map_on_one_core_each

READ_TOGETHER = 1024  # images


@dataclass(frozen=True)
class Scores:
    """A model's logits (n, k) for images, and how unlike its training images they are (n,), 0 where it cannot tell.

    `features` (m, width) are those of the images for which they were to be kept, in their order.
    """

    logits: NDArray[np.float32]
    novelty: NDArray[np.float32]
    features: NDArray[np.float32]

    @classmethod
    def of(cls, model: Model, features: NDArray[np.float32]) -> "Scores":
        """Return the scores of features (n, width), none of which are kept."""
        novelty = model.novelty.score(features) if model.novelty else np.zeros(len(features), np.float32)
        return cls(model.head.logits(features), novelty, features[:0])

    @classmethod
    def empty(cls, model: Model, keep: NDArray[np.bool_]) -> "Scores":
        """Return scores of images that are still to be computed; `keep` (n,) says whose features are kept."""
        shapes = ((len(keep), len(model.classes)), (len(keep),), (int(keep.sum()), model.network.head.in_features))
        return cls(*(np.empty(shape, np.float32) for shape in shapes))

    @classmethod
    def of_groups(cls, model: Model, groups: Iterable[NDArray[np.float32]], keep: NDArray[np.bool_]) -> "Scores":
        """Return the scores of the features (n, width) of several groups of images.

        Args:
            model: scores them.
            groups: one after the other.
            keep: for which images, of all groups, the features are kept.
        """
        return cls._gathered(model, ((x, cls.of(model, x)) for x in groups), keep)

    @classmethod
    def of_cached(cls, model: Model, features: Features, keep: NDArray[np.bool_]) -> "Scores":
        """Return the scores of cached features, computed beside the reading of others, each group on one core."""
        scored = map_on_one_core_each(lambda x: (x, cls.of(model, x)), (x for x, _ in features))
        return cls._gathered(model, scored, keep)

    @classmethod
    def _gathered(
        cls, model: Model, scored: Iterable[tuple[NDArray[np.float32], "Scores"]], keep: NDArray[np.bool_]
    ) -> "Scores":
        scores, done, kept = cls.empty(model, keep), 0, 0
        for features, own in scored:
            part = slice(done, done + len(features))
            scores.logits[part], scores.novelty[part] = own.logits, own.novelty
            chosen = features[keep[part]]
            scores.features[kept : kept + len(chosen)] = chosen
            done, kept = part.stop, kept + len(chosen)
        return scores


def score(
    model: Model, rows: pd.DataFrame, images_dir: Path, features_dir: Path | None = None, what: str = "evaluate",
    store: ArrayStore | None = None, keep: NDArray[np.bool_] | None = None, kept: ArrayStore | None = None,
) -> Scores:  # fmt: skip
    """Return a model's scores; nothing is decoded whose features are in a file.

    Args:
        model: a head on frozen features, or a fine-tuned network, whose features are in no cache.
        rows: of the manifest, sorted by shard and offset.
        images_dir: the shards.
        features_dir: the cache of features.
        what: name of the progress bar, if images are read.
        store: of decoded images.
        kept: has features that an interrupted run has computed, and keeps the others.
        keep: the rows whose features are kept, too (n,); None: none.

    Raises:
        DamagedError: an image or a feature file is not what was written.
    """
    folder = features_dir / model.feature_key if features_dir and model.feature_key else None
    shards = {shard for shard in rows["shard"].unique() if folder and _has_features(folder, shard)}
    cached = rows["shard"].isin(shards).to_numpy()
    keep = np.zeros(len(rows), bool) if keep is None else keep

    def of_cached(images: pd.DataFrame, keep: NDArray[np.bool_]) -> Scores:
        assert folder
        return Scores.of_cached(model, Features(folder, images), keep)

    def of_others(images: pd.DataFrame, keep: NDArray[np.bool_]) -> Scores:
        return Scores.of_groups(model, features(model, images, images_dir, what, store, kept), keep)

    parts = [(chosen, of) for chosen, of in ((cached, of_cached), (~cached, of_others)) if chosen.any()]
    if len(parts) == 1:  # nothing to put together, which would take twice the memory
        return parts[0][1](rows, keep)
    scores = Scores.empty(model, keep)
    for chosen, of in parts:
        found = of(rows[chosen], keep[chosen])
        scores.logits[chosen], scores.novelty[chosen] = found.logits, found.novelty
        scores.features[chosen[keep]] = found.features
    return scores


def _has_features(folder: Path, shard: str) -> bool:
    return feature_files.is_intact(folder / f"{shard}.parquet")


def features(
    model: Model, rows: pd.DataFrame, images_dir: Path, what: str, store: ArrayStore | None,
    kept: ArrayStore | None = None,
) -> Iterator[NDArray[np.float32]]:  # fmt: skip
    """Yield the features (n, width) of images, computed, a group at a time.

    With `kept`, those that are there are not computed, and all others are put there.
    """
    if kept is not None:
        places = list(zip(rows["shard"].tolist(), rows["offset"].tolist(), strict=True))
        _put_missing(model, rows, places, images_dir, what, store, kept)
        for some in grouped(places, READ_TOGETHER):
            found = [kept.get(*place) for place in some]
            yield np.stack([x for x in found if x is not None])
        return
    with progress.bar(what, len(rows)) as advance:
        for x in model.extractor.of_images(rows, images_dir, store):
            yield x
            advance(len(x))


def _put_missing(
    model: Model, rows: pd.DataFrame, places: Sequence[tuple[str, int]], images_dir: Path, what: str,
    store: ArrayStore | None, kept: ArrayStore,
) -> None:  # fmt: skip
    """Compute the features that are missing, in the groups in which all would be: so the last digits are the same."""
    is_there = np.array([kept.get(*place) is not None for place in places], bool)
    group = np.arange(len(rows)) // model.extractor.engine.group_size
    is_missing = np.isin(group, group[~is_there])
    missing = rows[is_missing]
    waiting = compress(places, is_missing)
    with progress.bar(what, len(rows)) as advance:
        advance(0, skip=len(rows) - len(missing))
        for some in model.extractor.of_images(missing, images_dir, store):
            for place, x in zip(islice(waiting, len(some)), some, strict=True):
                kept.put(*place, x)
            advance(len(some))
