"""Recipes of fine-tuning side by side on photos: test accuracy over several seeds, and seconds.

    python -m benchmarks.recipes sample:digits
    python -m benchmarks.recipes /photos/signs --size 128 --recipe today '{}' --recipe crops '{"augment": "crop"}'

A recipe is a name and values of the section `finetune` of params.yaml, as JSON. All start from the same head, features
and split; the seeds are those of order, augmentation and dropout. Images are decoded by each run's first epoch.
"""

import argparse
import json
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from benchmarks.photo_features import Photos, extracted
from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.dataset import tables
from rootstock.dataset.shards import Reader
from rootstock.features.feature_extractor import Mirrored
from rootstock.images import pixel_store
from rootstock.training import finetune, heads
from rootstock.training.classifier import Classifier, predict
from rootstock.training.frozen_layers import Cache
from rootstock.training.head import Head
from rootstock.training.split_images import Batches, SplitImages

DEFAULT = [["today", "{}"]]
POOL_GB = 20.0


@dataclass(frozen=True)
class Run:
    """Accuracies of a fine-tuned network, the last with mirrored views, too, and the seconds of fine-tuning."""

    validation: float
    test: float
    mirrored: float
    seconds: float


def run(photos: Photos, head: Head, settings: params.Finetune, seed: int) -> Run:
    """Fine-tune a network by a recipe, and measure it."""
    backbone = backbones.load(photos.backbone)
    model = Classifier(backbone.network, backbone.transform, head)
    rows = {split: photos.manifest[photos.manifest["split"] == split] for split in ("train", "val", "test")}
    names = set(photos.manifest["shard"])
    with tempfile.TemporaryDirectory() as folder:
        root, begin = Path(folder), time.perf_counter()
        side = settings.store_size if settings.augment != "none" else 0
        with (
            pixel_store.opened(root / "pixels", backbone.transform, photos.images, names, POOL_GB) as store,
            pixel_store.opened_for_crops(
                root / "pixels", side, backbone.transform, photos.images, names, POOL_GB, store
            ) as crops,
        ):
            train, val, test = (SplitImages(split, photos.images, store, crops) for split in rows.values())
            course = finetune.fine_tune(
                model, backbone.transform, train, val, settings, seed, root / "checkpoint.pt", "benchmark",
                activations=Cache(root / "activations", POOL_GB),
            )  # fmt: skip
            seconds = time.perf_counter() - begin
            accuracy, mirrored = (measured(one, test, backbone) for one in (model, Mirrored(model)))
    return Run(course.val_accuracy, accuracy, mirrored, seconds)


def measured(model: Classifier | Mirrored, images: SplitImages, backbone: backbones.Backbone) -> float:
    """Return the accuracy of a model."""
    with Reader(images.images_dir) as reader:
        batches = Batches(images, reader, backbone.transform, 64, next(model.parameters()).device)
        chosen = np.concatenate([logits.argmax(1) for logits in predict(model, batches(), 64)])
    return float(np.mean(chosen == images.labels().numpy()))


def over_seeds(values: list[float]) -> str:
    """Return the mean with its 95 % interval (Student's t over the seeds)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.1%}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:.1%} ± {half:.1%}"


def main() -> None:
    """Run every recipe with every seed in turn, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder, or any other source of params.yaml")
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipe", nargs=2, action="append", metavar=("NAME", "JSON"))
    args = parser.parse_args()
    recipes = {name: params.Finetune.model_validate(json.loads(text)) for name, text in args.recipe or DEFAULT}
    with extracted(args.source, args.size) as photos:
        groups = tables.group_numbers(tables.in_shard_order(photos.manifest, "val"))
        head = heads.fit(photos.split("train"), photos.split("val"), photos.classes, params.Head(), groups).linear
        found: dict[str, list[Run]] = {name: [] for name in recipes}
        for seed in range(args.seeds):
            for name, settings in recipes.items():
                done = run(photos, head, settings, seed)
                found[name].append(done)
                figures = f"validation {done.validation:.1%}, test {done.test:.1%}, mirrored {done.mirrored:.1%}"
                print(f"seed {seed}: {name}: {figures}, {done.seconds:.1f} s", flush=True)
    print(
        f"\n{torch.get_num_threads()} threads\n\n"
        "| recipe | validation | test accuracy | with mirrored views | seconds |\n|---|---|---|---|--:|"
    )
    for name, runs in found.items():
        val, test, mirrored, seconds = zip(*(astuple(one) for one in runs), strict=True)
        accuracies = " | ".join(over_seeds(list(values)) for values in (val, test, mirrored))
        print(f"| {name} | {accuracies} | {np.median(seconds):.1f} |")


if __name__ == "__main__":
    main()
