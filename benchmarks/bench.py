"""What the benchmarks of a GPU and of many cores share: photos that are drawn and ingested, figures, rates."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.extract import SIDES, draw_photo
from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.config.architectures import Transform
from rootstock.dataset import shards
from rootstock.features import computing
from rootstock.features.engines import Engine
from rootstock.images import loader
from rootstock.ingest import ingest
from rootstock.system import devices, progress
from rootstock.system.parallel import ordered_map

NAMES = {"efficientnet_lite0": "pretrained", "resnet50": "random"}
DRAWN, CLASSES = 400, 2


@dataclass
class Bench:
    """What is measured, and the figures so far."""

    folder: Path
    images: int
    size: int
    seconds: float
    out: Path | None
    device: torch.device = field(default_factory=devices.device)
    figures: dict[str, float] = field(default_factory=dict)
    tuned: int = 0  # training images in an epoch of fine-tuning, which ends with validation

    @property
    def photos(self) -> Path:
        """Return the folder of JPEGs, a subfolder per class."""
        return self.folder / "photos"

    def put(self, name: str, figure: float) -> None:
        """Print a figure, and write all of them."""
        self.figures[name] = round(figure, 4 if figure < 10 else 1)
        print(f"{name:<60}{self.figures[name]:>12,}", flush=True)
        if self.out:
            self.out.write_text(json.dumps(self.figures, indent=1))

    def backbone(self, name: str) -> backbones.Backbone:
        """Return a backbone with its weights."""
        return backbones.load(self.folder / name)

    def contents(self) -> list[bytes]:
        """Return all files."""
        return [path.read_bytes() for path in sorted(self.photos.rglob("*.jpg"))]

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, step: Callable[[], Any], images: int) -> float:
        """Return images/s of a step that is repeated, after a warm-up."""
        step()
        self.wait()
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < self.seconds:
            step()
            count += 1
        self.wait()
        return count * images / (time.perf_counter() - begin)


def prepare(bench: Bench) -> None:
    """Draw the photos, ingest them, and prepare the backbones."""

    def draw(index: int) -> None:
        photo = draw_photo(index, SIDES[index % len(SIDES)], 88)
        for copy in range(index, bench.images, DRAWN):
            path = bench.photos / f"class{copy % CLASSES}" / f"{copy:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo + copy.to_bytes(4, "big"))

    for _ in ordered_map(draw, range(min(DRAWN, bench.images))):
        pass
    bench.put("ingest", ingested(bench, bench.folder))
    for name, weights in NAMES.items():
        backbones.prepare(params.Backbone(name=name, weights=weights, image_size=bench.size), 0, bench.folder / name)


def ingested(bench: Bench, folder: Path) -> float:
    """Return images/s of ingest into a folder."""
    source = params.Source(path=str(bench.photos), domain="drawn")
    settings = params.Ingest(sources=(source,), near_duplicate_bits=0)
    begin = time.perf_counter()
    ingest.ingest(settings, 0, folder / "images", folder / "dataset", folder / "scratch")
    return bench.images / (time.perf_counter() - begin)


@dataclass(frozen=True)
class Views:
    """Decodes and resizes files, on a thread or in a process."""

    transform: Transform
    how: Any

    def __call__(self, contents: list[bytes]) -> list[int]:
        """Decode and resize a few files."""
        return [loader.view(data, self.transform, decode=self.how).shape[0] for data in contents]


def rate_of(groups: Iterator[Sized]) -> float:
    """Return images/s of groups of images."""
    begin = time.perf_counter()
    images = sum(len(group) for group in groups)
    return images / (time.perf_counter() - begin)


def extracted(bench: Bench, name: str, settings: params.Extract, engine: Engine) -> float:
    """Return images/s of an extraction."""
    shard_names = shards.names(bench.folder / "images")
    with tempfile.TemporaryDirectory() as folder:
        files = [computing.File(Path(folder) / f"{shard}.parquet", shard, 0) for shard in shard_names]
        begin = time.perf_counter()
        with progress.silent() as advance:
            computing.compute(files, engine, bench.backbone(name), settings, bench.folder / "images", advance)
        return bench.images / (time.perf_counter() - begin)
