"""Repeated splits: how good the head is on test images if the images are split otherwise, for small sets.

The images are split anew into folds, several times. Each fold in turn is the test images, the next one the validation
images, and the rest trains a head, so that every image is a test image once in each repeat. The L2 strength is chosen
inside (nested cross-validation; Varma and Simon 2006, BMC Bioinformatics 7:91).
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from rootstock.config import params
from rootstock.dataset import tables
from rootstock.evaluation import figures
from rootstock.evaluation.kept_heads import NONE_KEPT, KeptHeads
from rootstock.features.reader import Features
from rootstock.system import progress
from rootstock.system.parallel import map_on_one_core_each
from rootstock.training import head, heads
from rootstock.training.kept_passes import Tensors

FOLDS = 5


@dataclass(frozen=True)
class RepeatedSplits:
    """The head's accuracy on test images in each repeat, over all images."""

    accuracies: tuple[float, ...]
    images: int
    groups: int

    @property
    def mean(self) -> float:
        """Return the mean accuracy."""
        return float(np.mean(self.accuracies))

    def describe(self) -> str:
        """Describe the result in two sentences.

        There is no interval: the repeats share their images, so that their spread is that of the splits alone.
        """
        several, what = len(self.accuracies), f"all {self.images:,} images"
        if groups := figures.in_groups(self.images, self.groups):
            what += f",{groups},"
        low, high = (figures.percent(end(self.accuracies)) for end in (min, max))
        spread = f", {low} to {high} from repeat to repeat" if several > 1 else ""
        return (
            f"Repeated splits, frozen-feature head: {figures.percent(self.mean)} mean test accuracy{spread}. "
            f"In each of {figures.counted(several, 'repeat')}, {what} were split anew into {FOLDS} folds: three train "
            "a head, one chooses its L2 strength, one tests it."
        )


def measure(
    folders: Sequence[Path], manifest: pd.DataFrame, settings: params.Head, repeats: int, seed: int,
    kept: KeptHeads = NONE_KEPT,
) -> RepeatedSplits | None:  # fmt: skip
    """Measure the head on repeated splits of all images, whichever split they are in.

    Args:
        folders: cached features of the images and then of their augmented views, which only train.
        manifest: of the dataset.
        settings: the section `head` of params.yaml.
        repeats: how often all images are split.
        seed: of the splits.
        kept: of an evaluation that was stopped.

    Returns:
        None if there are fewer groups than folds.
    """
    rows = manifest.sort_values(["shard", "offset"], ignore_index=True)
    groups = tables.group_numbers(rows)
    if not repeats or len(np.unique(groups)) < FOLDS:
        return None
    labels, classes = tables.strata_of_rows(rows), tables.classes_of(rows)
    whole = Features(folders, rows, classes).keep()
    images = whole if len(folders) == 1 else Features(folders[0], rows, classes).keep()
    drawn = [draw_folds(labels, groups, seed + repeat) for repeat in range(repeats)]

    def correct(trial: tuple[int, int]) -> float:
        name, fold = f"repeat-{trial[0]}-{trial[1]}", drawn[trial[0]]

        def count() -> Tensors:
            found = _correct(whole, images, rows, fold, trial[1], settings, kept.passes(name))
            return {"correct": torch.tensor(found, dtype=torch.float64)}

        return float(kept.recall(name, count)["correct"])

    found = map_on_one_core_each(correct, itertools.product(range(repeats), range(FOLDS)))
    counts = list(progress.track(found, "evaluate", repeats * FOLDS, "repeated splits"))
    accuracies = [sum(counts[start : start + FOLDS]) / len(rows) for start in range(0, len(counts), FOLDS)]
    return RepeatedSplits(tuple(accuracies), len(rows), len(np.unique(groups)))


def draw_folds(labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Assign images (n,) to folds, stratified by class as well as whole groups allow.

    Images that are alone in their group are dealt out: scikit-learn's splitter would look at each by itself, which
    takes minutes for a million.
    """
    _, firsts, group, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    several = sizes > 1
    order = np.lexsort([np.random.default_rng(seed).permutation(len(sizes)), labels[firsts], several])
    dealt = np.empty(len(sizes), np.int64)
    dealt[order] = np.arange(len(sizes)) % FOLDS  # in turn, class by class, in random order within a class
    fold = dealt[group]
    rows = np.flatnonzero(several[group])
    if several.sum() >= FOLDS <= np.bincount(labels[rows]).max():  # else too few for the splitter
        splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            for number, (_, chosen) in enumerate(splitter.split(rows, labels[rows], group[rows])):
                fold[rows[chosen]] = number
    return fold


def _correct(
    views: Features, images: Features, rows: pd.DataFrame, fold: NDArray[np.int64], test: int, settings: params.Head,
    passes: Path | None = None,
) -> float:  # fmt: skip
    """Train a head without two folds, and count the images of one that it classifies correctly.

    A class without a training image is unknown to it: none of its images is classified correctly. Where images have any
    number of classes, their accuracies are added up (training/outcomes.py), and a class that is unknown does not count.

    Args:
        views: of all images, by which heads are trained.
        images: of all images as they are.
        rows: of the manifest.
        fold: of each image (n,).
        test: the fold of the test images.
        settings: the section `head` of params.yaml.
        passes: folder for what passes over the features find.
    """
    held_out = {"test": fold == test, "val": fold == (test + 1) % FOLDS}
    is_training = ~held_out["test"] & ~held_out["val"]
    classes, usable = known_from(rows[is_training], rows)
    training, val, tested = (
        usable[chosen[usable.index]] for chosen in (is_training, held_out["val"], held_out["test"])
    )
    if len(classes) < (1 if tables.is_multi_label(rows) else 2) or tested.empty:
        return float(len(tested))
    train, chosen_by, scored = (
        source.subset(part, classes)
        for source, part in ((views, training), (images, training if val.empty else val), (images, tested))
    )
    groups = tables.group_numbers(training if val.empty else val)
    fitted = heads.fit(train, chosen_by, classes, settings, groups, passes=passes).head
    correct = head.evaluate(fitted, scored)[1] * len(scored)
    return correct if tables.is_multi_label(rows) else float(round(correct))


def known_from(training: pd.DataFrame, rows: pd.DataFrame) -> tuple[list[str], pd.DataFrame]:
    """Return the classes that training images have, and the rows of these classes, with an index among them.

    Where images have any number of classes, all rows are returned as they are.
    """
    if tables.is_multi_label(rows):
        return tables.classes_of(training), rows
    known = np.unique(training["class_index"])
    usable = rows[rows["class_index"].isin(known)]
    return list(map(str, known)), usable.assign(class_index=np.searchsorted(known, usable["class_index"]))
