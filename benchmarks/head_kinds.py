"""Kinds of heads on a folder of photos with one subfolder per class: accuracy, log loss and seconds.

    python -m benchmarks.head_kinds /photos/signs --size 128               # by number of training images per class
    python -m benchmarks.head_kinds /photos/signs --size 128 --rare 50     # with class weights, classes down to 1:50

With --rare the training and validation images of each class are thinned out, geometrically from all of the first class
to 1/50 of the last, in a random order of classes; test images stay as they are.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from benchmarks.photo_features import Photos, extracted
from rootstock.config import params
from rootstock.config.params import ClassWeight
from rootstock.dataset import tables
from rootstock.evaluation import metrics
from rootstock.training import calibration, head, heads

KINDS = ("prototype", "ridge", "logistic", "knn", "auto")
PER_CLASS = (2, 5, 20, 0)  # training images of each class; 0 for all


def thinned(manifest: pd.DataFrame, kept: dict[int, int], split: str, rng: np.random.Generator) -> pd.DataFrame:
    """Keep so many images of each class in a split, chosen at random."""
    rows = manifest[manifest["split"] == split]
    of_class = [(rows[rows["class_index"] == label], count) for label, count in kept.items()]
    chosen = [own.iloc[rng.permutation(len(own))[: max(1, count)]] for own, count in of_class]
    return pd.concat([manifest[manifest["split"] != split], *chosen])


def measure(photos: Photos, kind: str, class_weight: ClassWeight = "none") -> dict[str, float | str]:
    """Fit a kind of head, and measure it on the test images."""
    settings = params.Head.model_validate({"kind": kind, "class_weight": class_weight})
    groups = tables.group_numbers(tables.in_shard_order(photos.manifest, "val"))
    train, val, test = (photos.split(name) for name in ("train", "val", "test"))
    start = time.perf_counter()
    fitted = heads.fit(train, val, photos.classes, settings, groups).head
    seconds = time.perf_counter() - start
    temperature = calibration.fit_temperature(head.scores(fitted, val), val.labels)
    chances = calibration.probabilities(head.scores(fitted, test), temperature)
    scored = metrics.score(test.labels, chances, np.full(len(test), "photos"), photos.classes)
    found = {name: scored[name]["value"] for name in ("accuracy", "balanced_accuracy", "log_loss")}
    return {**found, "seconds": seconds, "kind": fitted.describe()}


def few(photos: Photos) -> Iterator[tuple[str, str, ClassWeight, Photos]]:
    """Yield each kind of head on few and on all training images."""
    for count in PER_CLASS:
        rng = np.random.default_rng(0)
        kept = dict.fromkeys(range(len(photos.classes)), count or 10**9)
        part = replace(photos, manifest=thinned(photos.manifest, kept, "train", rng))
        for kind in KINDS:
            yield f"{count} per class" if count else "all", kind, "none", part


def rare(photos: Photos, ratio: float) -> Iterator[tuple[str, str, ClassWeight, Photos]]:
    """Yield each kind of head with and without class weights on classes of 1 : ratio."""
    rng = np.random.default_rng(0)
    manifest, k = photos.manifest, len(photos.classes)
    share = dict(zip(rng.permutation(k).tolist(), ratio ** -np.linspace(0, 1, k), strict=True))
    for split in ("train", "val"):
        counts = manifest.loc[manifest["split"] == split, "class_index"].value_counts()
        kept = {label: round(share[label] * counts.max()) for label in range(k)}
        manifest = thinned(manifest, kept, split, rng)
    counts = manifest.loc[manifest["split"] == "train", "class_index"].value_counts()
    part = replace(photos, manifest=manifest)
    weights: tuple[ClassWeight, ...] = ("none", "balanced")
    for kind in KINDS:
        for class_weight in weights:
            yield f"{counts.max()} to {counts.min()}, weights {class_weight}", kind, class_weight, part


def main() -> None:
    """Print the figures of each kind, as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--rare", type=float, help="how many times as many images the most frequent class has")
    args = parser.parse_args()
    with extracted(args.folder, args.size) as photos:
        print("| training images | head | test accuracy | balanced | log loss | seconds | chosen |")
        print("|---|---|--:|--:|--:|--:|---|")
        for called, kind, class_weight, part in rare(photos, args.rare) if args.rare else few(photos):
            found = measure(part, kind, class_weight)
            print(
                f"| {called} | {kind} | {found['accuracy']:.1%} | {found['balanced_accuracy']:.1%} "
                f"| {found['log_loss']:.3f} | {found['seconds']:.2f} | {found['kind']} |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
