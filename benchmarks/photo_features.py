"""Cached features of photos, in a temporary folder, for benchmarks of what is trained on them."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.dataset import tables
from rootstock.features import extraction
from rootstock.features.reader import Features
from rootstock.ingest import ingest


@dataclass(frozen=True)
class Photos:
    """Folders of features, images and the backbone, the manifest of the images, and their classes.

    `seconds` is how long ingest and extraction took.
    """

    folder: Path
    manifest: pd.DataFrame
    classes: list[str]
    images: Path
    backbone: Path
    seconds: dict[str, float]

    def split(self, name: str) -> Features:
        """Return the features of a split."""
        return Features(self.folder, tables.in_shard_order(self.manifest, name))


@contextmanager
def extracted(photos: str, size: int) -> Iterator[Photos]:
    """Ingest photos and extract their features with the default backbone at `size` pixels, in a temporary folder.

    Args:
        photos: any source of params.yaml, e.g. a folder with one subfolder per class.
        size: pixels.
    """
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        backbones.prepare(params.Backbone(image_size=size), 0, base / "backbone")
        backbone = backbones.load(base / "backbone")
        path = photos if ":" in photos else str(Path(photos).resolve())
        source = params.Source(path=path, domain="photos")
        begin = time.perf_counter()
        ingest.ingest(params.Ingest(sources=(source,)), 0, base / "images", base / "dataset", base / "scratch")
        manifest = tables.load_manifest(base / "dataset")
        ingested = time.perf_counter()
        done = extraction.extract(backbone, params.Extract(), base / "images", base / "features")
        folder = base / "features" / done.key
        seconds = {"ingest": ingested - begin, "extract": time.perf_counter() - ingested}
        yield Photos(folder, manifest, tables.classes_of(manifest), base / "images", base / "backbone", seconds)
