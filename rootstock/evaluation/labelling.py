"""Which unlabelled images to label first: those that the champion is least certain about, and unlike each other.

An image is uncertain if its two likeliest classes are about equally likely (margin sampling, Scheffer et al. 2001).
Taken alone, the least certain images are like each other; so a first batch is drawn from several times as many by the
seeding of k-means++ (Arthur and Vassilvitskii 2007), which takes an image the more probably the farther its features
lie from those already taken. Compared with random images, margins alone, entropy and k-centre by simulation:
docs/benchmarks.md, "Which images to label first".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.cluster import kmeans_plusplus

from rootstock.ingest.groups import components, links_by_name
from rootstock.ingest.near_duplicates import near_links
from rootstock.training.head import normalised

COLUMNS = ("path", "domain", "predicted", "confidence", "entropy", "margin", "novelty", "like")
BATCH = 50  # images to label at a time
OUT_OF = 5  # times as many, the least certain ones, from which they are drawn
KEPT = 2000  # of the least certain images, whose features are kept for that; many may be near duplicates
Array = NDArray[np.float32]


@dataclass(slots=True)
class Candidate:
    """A row of the list for labelling, and the image's perceptual hash and group, which are not in it."""

    path: str
    domain: str
    predicted: str
    confidence: float
    entropy: float
    margin: float
    phash: int
    group: str = ""
    novelty: float = math.nan
    like: str = ""

    @property
    def rank(self) -> tuple[float, str]:
        """Return what the list is sorted by: by the digits written to the file, as further ones differ by machine."""
        return float(f"{self.margin:.6g}"), self.path


class LeastCertain:
    """The features of the KEPT least certain images of those added so far, by path."""

    def __init__(self) -> None:
        self._kept: list[tuple[tuple[float, str], Array]] = []

    def add(self, candidates: Sequence[Candidate], features: Array) -> None:
        """Add images with their features (n, d)."""
        self._kept += [(one.rank, row) for one, row in zip(candidates, features, strict=True)]
        if len(self._kept) > 2 * KEPT:
            self._trim()

    def features(self) -> dict[str, Array]:
        """Return the features (d,) of each."""
        self._trim()
        return {path: row for (_, path), row in self._kept}

    def _trim(self) -> None:
        self._kept = [(rank, row.copy()) for rank, row in sorted(self._kept, key=lambda one: one[0])[:KEPT]]


def order(candidates: Sequence[Candidate], features: dict[str, Array], bits: int, seed: int) -> list[Candidate]:
    """Sort images: a first batch, the others by margin, then the near duplicates of an earlier image (`like`).

    Args:
        candidates: the images.
        features: those of the least certain ones (d,), by path.
        bits: in which the hashes of near duplicates may differ.
        seed: of the random draw.
    """
    ranked = sorted(candidates, key=lambda one: one.rank)
    first: dict[int, str] = {}
    for candidate, group in zip(ranked, groups_of(ranked, bits), strict=True):
        candidate.like = first.get(group, "")
        first.setdefault(group, candidate.path)
    alone = [one for one in ranked if not one.like]
    uncertain = [one for one in alone if one.path in features][: OUT_OF * BATCH]
    batch = draw([one.path for one in uncertain], features, seed)
    return sorted(ranked, key=lambda one: (bool(one.like), one.path not in batch))


def draw(paths: Sequence[str], features: dict[str, Array], seed: int) -> set[str]:
    """Draw a batch of images whose features lie apart from each other."""
    if len(paths) <= BATCH:
        return set(paths)
    rows = np.stack([features[path] for path in paths]).astype(np.float64)
    deviation = rows.std(axis=0)
    standardised = (rows - rows.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    _, drawn = kmeans_plusplus(normalised(standardised), BATCH, random_state=seed)
    return {paths[index] for index in drawn}


def groups_of(candidates: Sequence[Candidate], bits: int, *, named: bool = False) -> NDArray[np.int32]:
    """Return the group of each image, (n,): near duplicates, and if `named`, those of the same name (retrain.group)."""
    links, _ = near_links(np.array([candidate.phash for candidate in candidates], np.uint64), bits)
    if named:
        names, _ = pd.factorize(np.array([one.group or None for one in candidates], object))
        links = np.concatenate([links, links_by_name(np.flatnonzero(names >= 0), names[names >= 0])])
    return components(len(candidates), links)
