"""Means over classes, in which an image of a rare class weighs as much as many of a common one."""

import numpy as np
import numpy.typing as npt

from rootstock.evaluation.intervals import MIN_GROUPS_OF_CLASS, Floats, Integers, Interval, WeightedImages, wilson

TYPICAL_IMAGES_OF_CLASS = 4  # with fewer in most classes the interval of a mean of F1 holds too little
CLUSTERED = 1.2  # design effect of images that are alike in their groups, from which on groups matter


def balancing_weights(labels: Integers) -> Floats:
    """Return weights (n,) with which every class that occurs counts the same; they sum to 1."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights: Floats = 1 / (counts[codes] * len(counts))
    return weights


def balanced_share(hits: npt.NDArray[np.bool_], labels: Integers, groups: Integers) -> Interval:
    """Return the mean over classes of the share of hits (balanced accuracy) with its interval."""
    images = WeightedImages.of(groups, balancing_weights(labels))
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    recall = np.bincount(codes, hits) / counts
    deviations = images.weights * (hits - recall[codes])
    return wilson(float(images.weights @ hits), deviations, hits, images, means=len(counts), rarity=images.weights)


def has_enough_of_each_class(classes: Integers, groups: Integers, images: WeightedImages) -> bool:
    """Whether the classes of images are frequent enough for the interval of a mean of F1 over classes.

    Where groups are drawn, how many there are of a rare class is chance, and its precision depends on it: each class
    has to come in as many groups as for an interval of its own. Otherwise the median class needs some images.

    Args:
        classes: of each image (n,), each class of it where it has several.
        groups: of each of them (n,), as any integers.
        images: all of them, each once.
    """
    codes = np.unique(groups, return_inverse=True)[1]
    width = codes.max(initial=0) + 1
    counts = np.unique(np.unique(classes * width + codes) // width, return_counts=True)[1]
    if images.largest_design_effect > CLUSTERED:
        return int(min(counts, default=0)) >= MIN_GROUPS_OF_CLASS
    return len(counts) > 0 and float(np.median(counts)) >= TYPICAL_IMAGES_OF_CLASS
