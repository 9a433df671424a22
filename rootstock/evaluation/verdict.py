"""The verdict in words: how good the winner is, compared to what, and whether it may be used."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from rootstock.dataset import label_sets
from rootstock.evaluation import figures
from rootstock.system.phrases import listed

FEW_IMAGES = 100  # of a split, or groups of them: with fewer, figures are rough; of test images, no verdict
FEW_OF_CLASS = 30  # the same of a class
NAMED, WARNED_OF = 3, 5  # classes and domains that a sentence, or a warning, names


def most_frequent(test: Mapping[str, Any]) -> tuple[str, float]:
    """Return the most frequent class among the test images, and its share: what guessing would reach.

    Where images have any number of classes, it is the best set of them, and its accuracy.
    """
    if constant := test.get("constant"):
        return label_sets.shown(constant["label"]), float(constant["accuracy"])
    images = {name: own["images"] for name, own in test["classes"].items()}
    label = max(images, key=images.__getitem__)
    return label, images[label] / max(sum(images.values()), 1)


def compared(test: Mapping[str, Any], why: str) -> str:
    """Describe what the accuracy compares to: guessing, and the other model.

    Args:
        test: figures of the winner on the test images, as returned by `metrics.score`.
        why: it was chosen.
    """
    label, share = most_frequent(test)
    reached = "have an accuracy of" if "constant" in test else "be right for"
    return f"Always answering {label} would {reached} {figures.percent(share)}. {why}"


def usable(test: Mapping[str, Any]) -> str:
    """Return whether the winner may be used, from the interval of its accuracy and the figures of domains and classes.

    Args:
        test: figures of the winner on the test images, as returned by `metrics.score`.
    """
    accuracy = test["accuracy"]
    low, high = accuracy.get("low"), accuracy.get("high")
    label, share = most_frequent(test)
    if low is None or test["images"] < FEW_IMAGES:
        found = figures.count_images(test["images"], test["groups"], "test image")
        are = "is" if test["images"] == 1 else "are"
        return f"Too early to say: {found} {are} too few{'' if test['images'] < FEW_IMAGES else ' groups'} to rely on."
    if low <= share:
        return f"No: it is not shown to be better than always answering {label}."
    wrong = f"{_count(1 - high)} to {_count(1 - low)}"
    said = f"Yes, for images like these, where {wrong} wrong answers in 100 are acceptable."
    if "constant" in test:
        said = f"Yes, for images like these, where {wrong} of 100 labels may be missing or wrong."
    if weak := below(test["domains"], "accuracy", low):
        said += f" Less so for images of {listed(weak, NAMED)}: their accuracy is lower."
    if weak := below(test["classes"], "recall", low):
        said += f" Less so for {listed(weak, NAMED)}: more of their images are missed."
    return said


def describe_few(own: Mapping[str, Any], split: str) -> str:
    """Describe why figures on a split are rough, where its images or their groups are too few; else "".

    Args:
        own: figures of a model on the images of the split, as returned by `metrics.score`.
        split: its name.
    """
    if own["images"] < FEW_IMAGES:
        if own["images"] == 1:
            return f"There is only 1 {split} image: figures on it are rough."
        return f"There are only {own['images']} {split} images: figures on them are rough."
    images = figures.count_images(own["images"], own["groups"], f"{split} image")
    if own["accuracy"].get("low") is None:
        return f"There are {images}, too few groups for intervals: figures on them are rough."
    if own["groups"] < FEW_IMAGES:
        return f"There are only {images}: figures on them are rough."
    return ""


def describe_few_of_classes(counts: pd.DataFrame) -> str:
    """Describe which classes have too few test images, or groups of them, for figures to be worth much; else "".

    Args:
        counts: number of test images (size) and of groups (nunique) of each class.
    """
    few = counts[counts["nunique"] < FEW_OF_CLASS].sort_values(["nunique", "size"], kind="stable")
    if few.empty:
        return ""
    named = [f"{label} ({size:,}{figures.in_groups(size, groups)})" for label, size, groups in few.itertuples()]
    kind = "test images" if (few["size"] < FEW_OF_CLASS).all() else "groups of test images"
    return f"Fewer than {FEW_OF_CLASS} {kind}: {listed(named, WARNED_OF)}. Their figures are rough."


def below(parts: Mapping[str, Mapping[str, Any]], metric: str, low: float) -> list[str]:
    """Return the domains or classes that are shown to be worse: whose interval ends below `low`; the worst first.

    Args:
        parts: figures by name; those without images have none.
        metric: a share.
        low: lower end of the interval of the whole.
    """
    shown = {name: own[metric] for name, own in parts.items() if own.get("images")}
    found = [name for name, share in shown.items() if share.get("high") is not None and share["high"] < low]
    return sorted(found, key=lambda name: float(shown[name]["value"]))


def _count(share: float) -> str:
    count = 100 * share
    return f"{count:.0f}" if count >= 10 or round(count, 1) == round(count) else f"{count:.1f}"
