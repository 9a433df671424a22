"""A map of the features in two dimensions: t-SNE (van der Maaten and Hinton 2008) of scikit-learn.

Images that lie together look alike to the network. UMAP maps as well, but brings a compiler (numba, llvmlite) that
nothing else here needs; t-SNE of so few points takes a second or two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from rootstock.dataset import tables
from rootstock.evaluation import thumbnails
from rootstock.evaluation.model_pair import ModelPair
from rootstock.evaluation.scored import Scored
from rootstock.system.parallel import map_on_one_core_each

MOST_IMAGES = 600  # of validation and test together: t-SNE of more takes long, and a map of more is no clearer
FEWEST_IMAGES = 12
COMPONENTS = 50  # principal components that t-SNE works on (section 4.2 of the paper has 30)
PERPLEXITY = 30.0
ITERATIONS = 500
COLOURS, SHAPES = 7, 3  # that the style knows; so many classes have a look of their own
NAMED = COLOURS * SHAPES
SIDE = 48  # pixels of a thumbnail
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Embedding:
    """Some validation and test images in two dimensions.

    Args:
        points: of each image x and y (from 0 to 1), label, predicted, domain, split, and the indices `look` of its
            class among `classes` and `place` of its domain among `domains`, -1 for all others.
        classes: those that have a look of their own; where there are more, the most confused, then the largest.
        domains: those that have a colour of their own.
        sprite: the images as one picture (WebP), `columns` in a row, each `side` pixels wide and high.
        columns: of the sprite.
        of: how many validation and test images there are.
    """

    points: Sequence[dict[str, Any]]
    classes: Sequence[str]
    domains: Sequence[str]
    sprite: bytes
    columns: int
    of: int
    side: int = SIDE


def choose(rows: pd.DataFrame, count: int, seed: int) -> NDArray[np.bool_]:
    """Draw images evenly: from each class and domain in turn, in random order.

    Args:
        rows: of the manifest (n,).
        count: how many, at most.
        seed: of the order.

    Returns:
        Which of the rows were drawn (n,).
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    drawn_from = pd.DataFrame({"class": tables.strata_of_rows(rows), "domain": rows["domain"].to_numpy()})
    turn = drawn_from.iloc[order].groupby(["class", "domain"]).cumcount().to_numpy()
    drawn = np.zeros(len(rows), bool)
    drawn[order[np.argsort(turn, kind="stable")[:count]]] = True
    return drawn


def tsne(features: Floats, seed: int) -> Floats:
    """Place features (n, width) in a square, (n, 2) from 0 to 1, by t-SNE on their principal components."""
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    reduced = PCA(min(COMPONENTS, *scaled.shape), random_state=seed).fit_transform(scaled)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    mapped = TSNE(perplexity=perplexity, init="pca", random_state=seed, max_iter=ITERATIONS, n_jobs=1)
    placed = mapped.fit_transform(reduced)
    low, high = placed.min(0), placed.max(0)
    span = float((high - low).max()) or 1.0
    square: Floats = ((placed - (low + high) / 2) / span + 0.5).astype(np.float32)
    return square


def draw(
    pair: ModelPair, scored: Sequence[Scored], kept: Sequence[NDArray[np.bool_]], features: Floats, winner: str,
    seed: int,
) -> Embedding | None:  # fmt: skip
    """Map images of several splits.

    Args:
        pair: the models and their dataset.
        scored: the splits.
        kept: which images of each split are mapped.
        features: of these (m, width), in the same order.
        winner: the model that the features are of.
        seed: of t-SNE.

    Returns:
        None if there are fewer than FEWEST_IMAGES, or their features do not vary.
    """
    if len(features) < FEWEST_IMAGES or not np.isfinite(features).all() or not np.ptp(features, axis=0).any():
        return None
    rows = pd.concat([own.rows[keep] for own, keep in zip(scored, kept, strict=True)], ignore_index=True)
    rows["predicted"] = np.concatenate(
        [
            own.predictions[winner].texts(pair.classes, np.flatnonzero(keep))
            for own, keep in zip(scored, kept, strict=True)
        ]
    )
    for name in ("label", "predicted"):
        rows[name] = rows[name].map(pair.shown)
    shown, domains = _named(pair, rows), list(rows["domain"].value_counts().index[:COLOURS])
    [places] = map_on_one_core_each(partial(tsne, seed=seed), [features])  # its threads only wait for each other
    sprite, columns = thumbnails.sprite(pair.inputs.images, rows, SIDE)
    points = [
        {
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            **{name: row[name] for name in ("label", "predicted", "domain", "split")},
            "look": shown.index(row["label"]) if row["label"] in shown else -1,
            "place": domains.index(row["domain"]) if row["domain"] in domains else -1,
        }
        for (x, y), (_, row) in zip(places, rows.iterrows(), strict=True)
    ]
    return Embedding(points, shown, domains, sprite, columns, sum(len(own.rows) for own in scored))


def _named(pair: ModelPair, rows: pd.DataFrame) -> list[str]:
    """Return the classes that get a look of their own: the most often mistaken, then the largest; in their order."""
    wrong = rows.loc[rows["predicted"] != rows["label"], "label"].value_counts()
    classes = rows["label"].value_counts().to_frame("images").assign(wrong=wrong).fillna({"wrong": 0})
    ordered = classes.sort_values(["wrong", "images"], ascending=False, kind="stable")
    place = {name: number for number, name in enumerate(pair.classes)}
    return sorted(ordered.index[:NAMED], key=lambda name: (place.get(name, len(place)), name))
