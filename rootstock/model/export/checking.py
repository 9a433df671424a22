"""Compares an exported file with the model it was made from, on the same images, and times it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.dataset import label_sets
from rootstock.dataset.shards import Reader
from rootstock.features import preparing
from rootstock.model.export.formats import Run
from rootstock.model.model import Model
from rootstock.system.parallel import grouped, limit_to_one_core, ordered_map
from rootstock.training.outcomes import overlaps

AT_MOST = 5000  # images of a split
BATCH, TIMED_SECONDS = 32, 1.0
NOISE_IMAGES = 64
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Agreement:
    """How an exported file classifies images, against the model.

    `largest_difference` is that of any probability; `same_class` counts the images with the same predicted class;
    `of` says which images these were.
    """

    images: int
    same_class: int
    largest_difference: float
    of: str = "test images"

    def __str__(self) -> str:
        """Describe it in a phrase."""
        same = "all" if self.same_class == self.images else f"{self.same_class:,} of"
        return f"same class for {same} {self.images:,} {self.of}, probabilities within {self.largest_difference:.2g}"


@dataclass(frozen=True)
class SplitPixels:
    """The images of a split as a network takes them, at most AT_MOST of them, drawn at random."""

    model: Model
    rows: pd.DataFrame
    images: Path

    @classmethod
    def of(cls, model: Model, manifest: pd.DataFrame, split: str, images: Path, most: int = AT_MOST) -> "SplitPixels":
        """Draw images of a split whose class, or all of whose classes, the model knows.

        Args:
            model: whose transform prepares them.
            manifest: of the dataset.
            split: train, val or test.
            images: the shards.
            most: of them.
        """
        rows = manifest[manifest["split"] == split]
        known = {text for text in rows["label"].unique() if set(_labels(model, text)) <= set(model.classes)}
        rows = rows[rows["label"].isin(known)]
        drawn = rows.sample(most, random_state=0).sort_index() if len(rows) > most else rows
        return cls(model, drawn, images)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def labels(self) -> NDArray[np.bool_]:
        """Return which of the model's classes each image has (n, k)."""
        if self.model.multi_label:
            return label_sets.matrix(self.rows["label"], self.model.classes)
        has: NDArray[np.bool_] = self.rows["label"].to_numpy(str)[:, None] == np.asarray(self.model.classes, str)
        return has

    def batches(self) -> Iterator[Pixels]:
        """Yield the images (n, 3, size, size), decoded on all cores."""
        decode = self.model.spec.decode
        spec = replace(self.model.spec, decode="full" if decode == "gpu" else decode)
        places = zip(*(self.rows[name] for name in ("shard", "offset", "size", "image_id")), strict=True)
        with Reader(self.images) as reader:

            def prepare(group: Sequence[tuple[str, int, int, str]]) -> Pixels:
                found = (reader.image(shard, int(offset), int(size), name) for shard, offset, size, name in group)
                return np.stack([np.asarray(preparing.prepare(spec, data)) for data in found])

            yield from ordered_map(prepare, grouped(places, BATCH), first=limit_to_one_core)


def noise(size: int) -> Iterator[Pixels]:
    """Yield random pixels (n, 3, size, size), where there is no dataset to compare on."""
    pixels = np.random.default_rng(0).integers(0, 256, (NOISE_IMAGES, 3, size, size), np.uint8)
    yield from (np.stack(few) for few in grouped(pixels, BATCH))


def compare(run: Run, model: Model, test: SplitPixels | None) -> Agreement:
    """Compare probabilities with those of the model, on test images; on noise if there are none."""
    images, same, largest = 0, 0, 0.0
    for pixels in test.batches() if test else noise(model.spec.transform.size):
        expected = model.probabilities(model.extractor_of_many.features_of(list(pixels)))
        found = run(pixels)[0]
        images += len(pixels)
        same += int((model.answers(expected) == model.answers(found)).all(axis=1).sum())
        largest = max(largest, float(np.abs(expected - found).max()))
    return Agreement(images, same, largest, "test images" if test else "images of noise, as there is no dataset")


def accuracy(run: Run, split: SplitPixels) -> float:
    """Measure the accuracy on a split, as a share; of any number of classes, the overlap (training/outcomes.py)."""
    found = np.concatenate([split.model.answers(run(pixels)[0]) for pixels in split.batches()])
    return float(overlaps(found, split.labels()).mean())


def _labels(model: Model, text: str) -> list[str]:
    return label_sets.split(text) if model.multi_label else [text]


def images_per_second(run: Run, size: int) -> float:
    """Measure how many images (3, size, size) are classified per second, in batches of 32, on all cores."""
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 3, size, size), np.uint8)
    run(pixels)
    begin, done = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begin) < TIMED_SECONDS:
        run(pixels)
        done += BATCH
    return done / seconds
