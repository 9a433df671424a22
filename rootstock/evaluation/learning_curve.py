"""Would more images help? The head's accuracy on validation by the number of training images, and where that leads.

Heads are trained on cached features of some of the training images, so that the curve takes seconds. It is extrapolated
by a power law of the error (Hestness et al. 2017, Deep Learning Scaling is Predictable, Empirically).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from rootstock.config import params
from rootstock.dataset import tables
from rootstock.dataset.tables import Labels
from rootstock.evaluation.kept_heads import NONE_KEPT, KeptHeads
from rootstock.features.reader import Features
from rootstock.system import progress
from rootstock.system.parallel import map_on_one_core_each
from rootstock.system.phrases import percent
from rootstock.system.sampling import evenly_spaced
from rootstock.training import head, heads
from rootstock.training.class_weights import class_weights
from rootstock.training.head import Head
from rootstock.training.kept_passes import Tensors
from rootstock.training.principal_axes import find_principal_axes

SHARES = [0.1, 0.25, 0.5]  # of the groups of training images; of all of them there is a head already
SEEDS, FEW_SEEDS = 5, 2  # of each number of images; of many, which say the same
FEWEST_GROUPS = 20
# Images of a fit, and these times classes times the features' width: more would take minutes
MOST_IMAGES, MOST_PRODUCTS = 50_000, 1e10
# Of L-BFGS: more change accuracies by a fifth of their standard error (docs/benchmarks.md)
ITERATIONS, FEW_ITERATIONS = 30, 15
MOST_VAL_IMAGES = 20_000  # evenly spaced ones of more: the standard error is at most 0.4 points
WORTH_IT = 0.01  # gain in accuracy of twice as many images that is worth a recommendation


@dataclass(frozen=True)
class LearningCurve:
    """Validation accuracy of heads on some of the training images.

    Args:
        images: number of training images, ascending (m,).
        accuracy: of the head of each seed at each number (m, seeds).
        doubled: extrapolated to twice the largest number, for each seed (seeds,).
    """

    images: tuple[int, ...]
    accuracy: tuple[tuple[float, ...], ...]
    doubled: tuple[float, ...]

    def describe(self) -> str:
        """Describe in a sentence whether more images would help."""
        now, then = float(np.mean(self.accuracy[-1])), float(np.mean(self.doubled))
        verdict = "would help" if then - now >= WORTH_IT else "would change little"
        low, high = min(self.doubled), max(self.doubled)
        ends = percent(low), percent(high)
        spread = f" ({ends[0]} to {ends[1]} by which images were left out)" if ends[0] != ends[1] else ""
        few, many, first = self.images[0], self.images[-1], float(np.mean(self.accuracy[0]))
        return (
            f"More images like these {verdict}: with {few:,} training images the head on frozen features has a "
            f"validation accuracy of {percent(first)}, with {many:,} of {percent(now)}; with {2 * many:,} about "
            f"{percent(then)} can be expected{spread}."
        )

    def as_table(self) -> pd.DataFrame:
        """Return one row per head: images, seed, accuracy."""
        rows = [
            (count, seed, accuracy)
            for count, found in zip(self.images, self.accuracy, strict=True)
            for seed, accuracy in enumerate(found)
        ]
        return pd.DataFrame(rows, columns=["images", "seed", "accuracy"])


def measure(
    folder: Path, manifest: pd.DataFrame, classes: list[str], chosen: Head, settings: params.Head, seed: int,
    kept: KeptHeads = NONE_KEPT,
) -> LearningCurve | None:  # fmt: skip
    """Measure heads of the kind and strength that were chosen on some of the training images.

    Args:
        folder: cached features.
        manifest: of the dataset.
        classes: names in index order.
        chosen: the head.
        settings: the section `head` of params.yaml.
        seed: of the images that are drawn.
        kept: of an evaluation that was stopped.

    Returns:
        None if there are fewer than FEWEST_GROUPS groups of training images, or every draw has all of them. The last
        point is the chosen head's own accuracy.
    """
    rows, val_rows = (tables.in_shard_order(manifest, split) for split in ("train", "val"))
    val_rows = val_rows.iloc[evenly_spaced(len(val_rows), MOST_VAL_IMAGES)]
    if rows["group_id"].nunique() < FEWEST_GROUPS or val_rows.empty:
        return None
    val = Features(folder, val_rows, classes)
    groups = tables.group_numbers(val_rows)
    shares, seeds = _plan(len(rows), len(classes) * val.width)
    many = shares == SHARES  # else there are a few large heads: one at a time, in bounded memory
    recipe = _recipe(chosen, settings, ITERATIONS if many else FEW_ITERATIONS)
    trials = list(product(shares, range(seeds)))
    train_groups, strata = tables.group_numbers(rows), tables.strata_of_rows(rows)
    labels = tables.labels_of_rows(rows, classes)
    drawn = {
        trial: rows[_with_all_classes(_draw(train_groups, strata, trial[0], seed + trial[1]), train_groups, labels)]
        for trial in trials
    }
    if many:
        train, val = Features(folder, rows, classes).keep(), val.keep()
    else:  # of very many images those that any head needs are read once, in one pass
        used = rows[rows.index.isin(pd.concat(drawn.values()).index)]
        train = Features(folder, pd.concat([used, val_rows]), classes).keep()
        val = train.subset(val_rows)
    axes = None
    if chosen.kind == "logistic":
        of_axes = train if many else train.subset(used)
        axes = find_principal_axes(of_axes, class_weights(of_axes.labels, len(classes), recipe.class_weight))

    def fit(trial: tuple[float, int]) -> Tensors:
        own = drawn[trial]
        fitted = heads.fit(train.subset(own), val, classes, recipe, groups, axes=axes).head
        is_known = fitted.kind == "logistic" and recipe.class_weight == "none"  # else images count by their class
        accuracy = fitted.val_accuracy if is_known else head.evaluate(fitted, val)[1]
        return {"images": torch.tensor(len(own)), "accuracy": torch.tensor(accuracy, dtype=torch.float64)}

    def recall(trial: tuple[float, int]) -> tuple[int, float]:
        found = kept.recall(f"curve-{trial[0]:g}-{trial[1]}", lambda: fit(trial))
        return int(found["images"]), float(found["accuracy"])

    each = map_on_one_core_each(recall, trials) if many else map(recall, trials)
    fitted = progress.track(each, "evaluate", len(trials), "heads of a learning curve")
    found = dict(zip(trials, fitted, strict=True))
    whole = len(rows), head.evaluate(chosen, val)[1]
    per_share = [*([found[share, number] for number in range(seeds)] for share in shares), [whole] * seeds]
    images = tuple(round(float(np.mean([count for count, _ in part]))) for part in per_share)
    if images[0] == images[-1]:  # a class of one image is in every draw
        return None
    accuracy = tuple(tuple(value for _, value in part) for part in per_share)
    doubled = tuple(extrapolate(images, column, len(val)) for column in zip(*accuracy, strict=True))
    return LearningCurve(images, accuracy, doubled)


def _with_all_classes(drawn: NDArray[np.bool_], groups: NDArray[np.int64], labels: Labels) -> NDArray[np.bool_]:
    """Add the first group of each class that no drawn image has: it may be the class of no group's first image."""
    added = drawn.copy()
    for has in labels.T if labels.ndim == 2 else (labels == label for label in np.unique(labels)):
        if has.any() and not (has & added).any():
            added |= groups == groups[has.argmax()]
    return added


def _recipe(chosen: Head, settings: params.Head, iterations: int) -> params.Head:
    """Return the settings of a head of the kind and strength that were chosen."""
    if chosen.kind != "logistic":
        return settings.model_copy(update={"kind": chosen.kind})
    iterations = min(iterations, settings.max_iterations)
    return settings.model_copy(update={"kind": chosen.kind, "l2": (chosen.l2,), "max_iterations": iterations})


def _plan(images: int, values: int) -> tuple[list[float], int]:
    """Return the shares of the images of which heads are fitted, and how many of each.

    Args:
        images: in training.
        values: a head's weights, classes times the features' width.
    """
    most = min(MOST_IMAGES, MOST_PRODUCTS / values)
    if images <= most:
        return SHARES, SEEDS
    shares = [share for share in SHARES if share * images <= most]
    return shares if len(shares) > 1 else [most / 4 / images, most / images], FEW_SEEDS


def extrapolate(images: Sequence[int], accuracy: Sequence[float], val_images: int) -> float:
    """Extrapolate accuracy to twice the largest number of training images.

    The error is taken to fall by a power law, b n^-c with c from 0 to 1, fitted to its logarithm; an error of none of
    the validation images counts as half an image.
    """
    errors = np.maximum(1 - np.asarray(accuracy), 0.5 / val_images)
    if len(images) < 2:
        return float(accuracy[-1])
    slope = float(np.polyfit(np.log(images), np.log(errors), 1)[0])
    return float(1 - (1 - accuracy[-1]) * 2 ** np.clip(slope, -1, 0))


def _draw(groups: NDArray[np.int64], labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Draw a share of the groups of each class, at least one, whole; return which images (n,) are in these.

    A group counts for the class of its first image; `groups` (n,) are 0, 1, ... and `labels` (n,) class indices.
    """
    classes = labels[np.unique(groups, return_index=True)[1]]
    order = np.random.default_rng(seed).permutation(len(classes))
    of_class = pd.Series(order).groupby(classes[order])
    drawn = np.zeros(len(classes), bool)
    drawn[order[of_class.cumcount() < np.ceil(share * of_class.transform("size"))]] = True
    kept: NDArray[np.bool_] = drawn[groups]
    return kept
