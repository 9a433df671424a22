"""A small real dataset: drawn images of three classes, as ingest leaves it, and what the other stages make of it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model

from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.dataset import tables
from rootstock.features import extraction, reader
from rootstock.ingest.ingest import ingest
from rootstock.training import classifier, finetune, head, logistic
from rootstock.training.course import save_course
from rootstock.training.split_images import SplitImages

torch.set_num_threads(1)  # networks this small gain nothing from more, and lose much on a busy machine
CLASSES = ["checks", "rings", "stripes"]
SIDE = 40  # pixels
IMAGES = 20  # a class and domain
EAGER = params.Extract(engine="eager")


@dataclass(frozen=True)
class Small:
    """Where its parts are; what a test changes, it changes in a copy."""

    source: Path
    images: Path
    dataset: Path

    @property
    def manifest(self) -> pd.DataFrame:
        return tables.load_manifest(self.dataset)

    def split(self, name: str) -> pd.DataFrame:
        return self.manifest[self.manifest["split"] == name]


def picture(label: str, seed: int, side: int = SIDE) -> Image.Image:
    """Draw a pattern in two random colours, one with a touch of its class's own, somewhere, under a little noise."""
    rng = np.random.default_rng([CLASSES.index(label), seed])
    y, x = np.mgrid[:side, :side] / side - rng.uniform(0.2, 0.8, (2, 1, 1))
    turn, waves = rng.uniform(0, np.pi), rng.uniform(12, 24)
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    wave = {
        "checks": np.sin(waves * along) * np.sin(waves * across),
        "rings": np.sin(2 * waves * np.hypot(x, y)),
        "stripes": np.sin(waves * along),
    }[label]
    light, dark = rng.uniform(140, 255, 3), rng.uniform(0, 115, 3)
    light[np.arange(3) != CLASSES.index(label)] *= rng.uniform(0.3, 0.8)
    pixels = np.where(wave[..., None] > 0, light, dark) + rng.normal(0, 20, (side, side, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw(folder: Path, images: int = IMAGES, first: int = 0) -> Path:
    """Write a folder with one subfolder per class."""
    for label in CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + images):
            picture(label, number).save(folder / label / f"{number:04d}.png")
    return folder


def ingested(folder: Path, *sources: tuple[Path, str], shard_mb: float = 0.05, allow_relabel: bool = False) -> Small:
    """Ingest sources, each a folder and its domain, into `folder`; shards of about ten images."""
    listed = tuple(params.Source(path=str(path), domain=domain) for path, domain in sources)
    split = params.Split(val=0.2, test=0.2)
    settings = params.Ingest(sources=listed, shard_mb=shard_mb, split=split, allow_relabel=allow_relabel)
    ingest(settings, 0, folder / "images", folder / "dataset", folder / "scratch")
    return Small(sources[0][0], folder / "images", folder / "dataset")


@cache
def small_dataset(base: Path) -> Small:
    """Make the dataset that tests share, once a session: `base` is `tmp_path_factory.getbasetemp()`."""
    studio, field = draw(base / "small" / "studio"), draw(base / "small" / "field", first=IMAGES)
    return ingested(base / "small", (studio, "studio"), (field, "field"))


@cache
def small_backbone(base: Path, name: str = "shufflenet_v2_x0_5", size: int = 32, seed: int = 0) -> Path:
    """Prepare a backbone with random weights, and batch-norm statistics of drawn images, once a session.

    Without those the signal dies away from layer to layer, and no pretrained network is like that.
    """
    torch.manual_seed(seed)
    network, folder = get_model(name), base / "backbones" / f"{name}-{size}-{seed}"
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # an average of all it is shown
    drawn = np.stack([np.asarray(picture(label, seed, size)) for label in CLASSES for seed in range(20)])
    network.train()(torch.from_numpy(drawn).permute(0, 3, 1, 2) / 64 - 2)
    folder.parent.mkdir(exist_ok=True)
    save_file(network.state_dict(), f"{folder}.safetensors")
    settings = params.Backbone(name=name, weights=f"{folder}.safetensors", image_size=size, crop_fraction=1.0)
    backbones.prepare(settings, 0, folder)
    return folder


@cache
def small_features(base: Path, name: str = "shufflenet_v2_x0_5", size: int = 32) -> Path:
    """Extract the features of the dataset, once a session; returns the folder of the key."""
    small, settings = small_dataset(base), params.Extract()
    done = extraction.extract(
        backbones.load(small_backbone(base, name, size)), settings, small.images, base / "features"
    )
    return base / "features" / done.key


@cache
def small_head(base: Path, name: str = "shufflenet_v2_x0_5", size: int = 32) -> Path:
    """Fit a head on the features, once a session."""
    small, folder = small_dataset(base), small_features(base, name, size)
    train, val = (reader.Features(folder, small.split(split)) for split in ("train", "val"))
    head.save(logistic.fit_logistic_path(train, val, CLASSES, (10.0, 1.0)), base / "heads" / folder.name, {})
    return base / "heads" / folder.name


def classifier_from(head_folder: Path, backbone_folder: Path) -> classifier.Classifier:
    """The network that fine-tuning starts from."""
    backbone = backbones.load(backbone_folder)
    return classifier.Classifier(backbone.network, backbone.transform, head.load(head_folder))


@cache
def small_finetuned(base: Path, name: str = "shufflenet_v2_x0_5", size: int = 32) -> Path:
    """Fine-tune for a few epochs, once a session."""
    small, folder, backbone = (
        small_dataset(base),
        base / "finetuned" / f"{name}-{size}",
        small_backbone(base, name, size),
    )
    model = classifier_from(small_head(base, name, size), backbone)
    train, val = (SplitImages(small.split(split), small.images) for split in ("train", "val"))
    settings = params.Finetune(stages=(params.Stage(unfreeze="all", epochs=5, lr=1e-3),), batch_size=16)
    transform = backbones.load(backbone).transform
    course = finetune.fine_tune(model, transform, train, val, settings, 0, base / "checkpoint", "")
    (base / "checkpoint").unlink()
    save_course(model, course, folder)
    return folder
