"""Epochs of fine-tuning beside the training steps that they consist of.

    python -m benchmarks.epochs [sample:digits] [--size 96] [--epochs 4] [--unfreeze all last_3_blocks last_block]

For each stage: seconds of an epoch from the second on (reading, steps, validation, checkpoints now and then), with
frozen layers computed once or in every epoch, and of as many steps on a mini-batch that is there. For the latter, the
trained part is given activations. The default backbone, on the sample or any other source of params.yaml.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.photo_features import Photos, extracted
from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.images import pixel_store
from rootstock.system import memory
from rootstock.training import finetune, heads
from rootstock.training.batch_norm import folded
from rootstock.training.classifier import Classifier
from rootstock.training.division import UndividedError, divide
from rootstock.training.frozen_layers import Cache
from rootstock.training.split_images import SplitImages
from rootstock.training.step import TrainingStep
from rootstock.training.unfreezing import optimiser_of

GB = 20.0


def classifier(photos: Photos) -> Classifier:
    """Return the default backbone with a linear head."""
    backbone = backbones.load(photos.backbone)
    train, val = (photos.split(name) for name in ("train", "val"))
    fitted = heads.fit(train, val, photos.classes, params.Head(), np.arange(len(val)))
    return Classifier(backbone.network, backbone.transform, fitted.linear)


def steps_alone(photos: Photos, stage: params.Stage, settings: params.Finetune) -> float:
    """Return the seconds of an epoch's steps on a mini-batch that is there, the median of three."""
    model = classifier(photos).train().to(memory_format=torch.channels_last)
    size = backbones.load(photos.backbone).transform.size
    images = torch.randint(256, (settings.batch_size, 3, size, size), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    target = torch.arange(len(images)) % len(photos.classes)
    with folded(model, images), memory.reused():
        optimiser = optimiser_of(model, stage, settings)
        try:
            division = divide(model, images)
            part, batch = division.trained, division.frozen(images).detach()
        except UndividedError:
            part, batch = model, images  # type: ignore[assignment]
        step = TrainingStep(part, optimiser, settings)
        part.train()
        count = int((photos.manifest["split"] == "train").sum()) / settings.batch_size
        step(batch, target)
        taken = []
        for _ in range(3):
            begin = time.perf_counter()
            for _ in range(round(count)):
                step(batch, target).item()
            taken.append((time.perf_counter() - begin) / round(count) * count)
    return float(np.median(taken))


def epoch(photos: Photos, settings: params.Finetune, activations_gb: float) -> float:
    """Return the seconds of an epoch of a run, the mean from the second on."""
    transform = backbones.load(photos.backbone).transform
    rows = {split: photos.manifest[photos.manifest["split"] == split] for split in ("train", "val")}
    with tempfile.TemporaryDirectory() as name:
        root, names = Path(name), set(photos.manifest["shard"])
        with pixel_store.opened(root / "pixels", transform, photos.images, names, GB) as store:
            train, val = (SplitImages(split, photos.images, store) for split in rows.values())
            course = finetune.fine_tune(
                classifier(photos), transform, train, val, settings, 0, root / "checkpoint", "",
                activations=Cache(root / "activations", activations_gb),
            )  # fmt: skip
    return float(np.mean(course.seconds[1:]))


def main() -> None:
    """Print a row for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="sample:digits")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--unfreeze", nargs="+", default=["all", "last_3_blocks", "last_block"])
    args = parser.parse_args()
    print("| unfrozen | steps alone | epoch | of the steps | epoch that computes frozen layers |")
    print("|---|--:|--:|--:|--:|")
    with extracted(args.source, args.size) as photos:
        for unfreeze in args.unfreeze:
            stage = params.Stage(unfreeze=unfreeze, epochs=args.epochs, lr=1e-4)
            settings = params.Finetune(stages=(stage,))
            before = steps_alone(photos, stage, settings)
            seconds = epoch(photos, settings, GB)
            alone = (before + steps_alone(photos, stage, settings)) / 2
            computed = epoch(photos, settings, 0)
            ratio = seconds / alone
            print(f"| {unfreeze} | {alone:.2f} s | {seconds:.2f} s | {ratio:.2f} | {computed:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
