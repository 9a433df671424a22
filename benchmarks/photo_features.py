"""Cached features of a folder of photos with one subfolder per class, for benchmarks of what is trained on them."""

import tempfile
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
    """A folder of features, the manifest of their images, and the classes."""

    folder: Path
    manifest: pd.DataFrame
    classes: list[str]

    def split(self, name: str) -> Features:
        """Return the features of a split."""
        return Features(self.folder, tables.in_shard_order(self.manifest, name))


@contextmanager
def extracted(photos: Path, size: int) -> Iterator[Photos]:
    """Ingest photos and extract their features with the default backbone at `size` pixels, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        backbones.prepare(params.Backbone(image_size=size), 0, base / "backbone")
        backbone = backbones.load(base / "backbone")
        source = params.Source(path=str(photos.resolve()), domain="photos")
        ingest.ingest(params.Ingest(sources=(source,)), 0, base / "images", base / "dataset", base / "scratch")
        manifest = tables.load_manifest(base / "dataset")
        done = extraction.extract(backbone, params.Extract(), base / "images", base / "features")
        yield Photos(base / "features" / done.key, manifest, tables.classes_of(manifest))
