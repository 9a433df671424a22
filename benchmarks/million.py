"""The whole chain on many images and classes: seconds, memory and disk of each stage, and how they grow.

python -m benchmarks.million --images 10000 100000 [--stages ingest extract] [--more ingest] [--folder DIR]
    [--picture FILE]

Draws small JPEGs (64 px, every one different), one folder per class, and runs every stage with `dvc repro`, frozen
backbone, in a workspace of its own; then a second delivery of 1,000 images. A million need 20 GB. Memory is that of the
stage's processes, DVC's among them, summed, as often as ten times a second.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import matplotlib.pyplot as plt
import numpy as np
import psutil
import simplejpeg

from benchmarks.project import copy_project, size_of
from rootstock.config.params import Backbone, Finetune, Head, Ingest, Source
from rootstock.system.parallel import cores
from tasks.bridge.workspace import LOCAL

STAGES = ("ingest", "backbone", "extract", "train_head", "fine_tune", "evaluate")
SIDE, GRID, QUALITY = 64, 8, 80
CHUNK, MORE = 10_000, 1000
BYTES_PER_IMAGE = 20_000  # photo in a block of the file system, shard, DVC's copy, features twice
PAUSE = 0.1  # seconds between two looks at a process
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Figures:
    """What a stage took: seconds, GiB of memory at its peak, bytes on disk of what it left."""

    seconds: float
    memory: float
    disk: int


def draw(folder: Path, indices: range, classes: int) -> None:
    """Draw images by number: a grid of random colours blended with that of the class."""
    patterns: dict[int, np.ndarray] = {}
    for index in indices:
        kind = index % classes
        if kind not in patterns:
            patterns[kind] = np.random.default_rng([1, kind]).integers(0, 128, (GRID, GRID, 3), np.uint8)
        noise = np.random.default_rng([2, index]).integers(0, 128, (GRID, GRID, 3), np.uint8)
        pixels = np.kron(patterns[kind] + noise, np.ones((SIDE // GRID, SIDE // GRID, 1), np.uint8))
        path = folder / f"class-{kind:04d}" / f"{index:08d}.jpg"
        path.write_bytes(simplejpeg.encode_jpeg(pixels, quality=QUALITY))


def draw_all(folder: Path, indices: range, classes: int) -> None:
    """Draw images on all cores."""
    for kind in range(classes):
        (folder / f"class-{kind:04d}").mkdir(parents=True, exist_ok=True)
    chunks = [indices[at : at + CHUNK] for at in range(0, len(indices), CHUNK)]
    with ProcessPoolExecutor(cores()) as pool:
        for job in [pool.submit(draw, folder, chunk, classes) for chunk in chunks]:
            job.result()


def make_workspace(root: Path, backbone: str, l2: tuple[float, ...]) -> None:
    """Create a workspace with a frozen backbone whose source is the folder `photos`."""
    weights = "pretrained" if backbone.startswith("efficientnet") else "random"
    copy_project(
        root,
        ingest=Ingest(sources=(Source(path="photos", domain="drawn"),)),
        backbone=Backbone(name=backbone, weights=weights, image_size=SIDE),
        head=Head(l2=l2),
        finetune=Finetune(stages=()),
    )
    with (root / ".gitignore").open("a") as file:
        file.write("/photos/\n")  # else DVC looks for stages in it at every command


def memory_of(process: psutil.Process) -> int:
    """Return the resident bytes of a process and its descendants."""
    found = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            found += member.memory_info().rss
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return found


def run(root: Path, stage: str) -> Figures:
    """Run a stage with DVC."""
    outputs = {"ingest": ["images", "dataset"], "extract": ["features"], "train_head": ["head"],
               "evaluate": ["model", "report"]}.get(stage, [])  # fmt: skip
    seconds, memory = watch(root, root / f"{stage}.log", "dvc", "repro", "--single-item", stage)
    return Figures(seconds, memory, size_of(*(root / "data" / name for name in outputs)))


def watch(root: Path, log: Path, *module: str) -> tuple[float, float]:
    """Run a Python module in a workspace; return its seconds, and GiB of memory at its peak."""
    peak = 0

    def look(process: psutil.Process) -> None:
        nonlocal peak
        peak = max(peak, memory_of(process))

    return run_module(root, log, *module, look=look), peak / 2**30


def run_module(
    root: Path, log: Path, *module: str, look: Callable[[psutil.Process], None], env: Mapping[str, str] = NO_VARIABLES
) -> float:
    """Run a Python module in a workspace, looking at its process every PAUSE; return its seconds, exit if it fails."""
    start = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], cwd=root, stdout=file, stderr=file,
            env=os.environ | {"DVC_NO_ANALYTICS": "1"} | dict(env),
        )  # fmt: skip
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            look(watched)
            time.sleep(PAUSE)
    if process.returncode:
        sys.exit(f"{' '.join(module)} failed: see {log}")
    return time.perf_counter() - start


def measure(
    root: Path,
    images: int,
    classes: int,
    backbone: str,
    l2: tuple[float, ...],
    stages: Sequence[str] = STAGES,
    more: Sequence[str] = STAGES,
) -> Iterator[tuple[str, Figures]]:
    """Draw the images, and yield the figures of each stage; then of each of `more` after a second delivery."""
    make_workspace(root, backbone, l2)
    start = time.perf_counter()
    draw_all(root / "photos", range(images), classes)
    yield "draw", Figures(time.perf_counter() - start, 0, size_of(root / "photos"))
    for stage in stages:
        yield stage, run(root, stage)
    draw_all(root / "photos", range(images, images + MORE), classes)
    for stage in more:
        yield f"{MORE:,} more: {stage}", run(root, stage)


def describe(stage: str, images: int, figures: Figures) -> str:
    """Describe what a stage took, in a line."""
    return (
        f"{stage:<26}{figures.seconds:>9.1f} s {images / figures.seconds:>9,.0f} images/s "
        f"{figures.memory:>6.2f} GiB {figures.disk / 1e6:>10,.1f} MB"
    )


def print_growth(measured: dict[int, dict[str, Figures]]) -> None:
    """Print seconds and memory of each stage, a column per size."""
    sizes = sorted(measured)
    print(f"\n{'seconds, and GiB, at':<26}" + "".join(f"{images:>18,}" for images in sizes))
    for stage in dict.fromkeys(stage for images in sizes for stage in measured[images]):
        cells = [measured[images].get(stage) for images in sizes]
        shown = (f"{cell.seconds:>11.1f} {cell.memory:>6.2f}" if cell else f"{'':>18}" for cell in cells)
        print(f"{stage:<26}" + "".join(shown))


def read(path: Path) -> dict[int, dict[str, Figures]]:
    """Read the figures of earlier runs by size and stage."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    return {int(size): {stage: Figures(**found) for stage, found in stages.items()} for size, stages in kept.items()}


def write(measured: dict[int, dict[str, Figures]], path: Path) -> None:
    """Write the figures for `read`."""
    kept = {size: {stage: vars(found) for stage, found in stages.items()} for size, stages in measured.items()}
    path.write_text(json.dumps(kept, indent=1))


def draw_growth(measured: dict[int, dict[str, Figures]], path: Path) -> None:
    """Plot seconds and memory of each stage by the number of images, and save the picture."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    more = f"{MORE:,} more: "
    for axes, prefix, unit in zip(panels, ("", more, ""), ("seconds", "seconds", "memory"), strict=True):
        for stage in ("ingest", "extract", "train_head", "evaluate"):
            cells = {
                images: stages[prefix + stage]
                for images, stages in sorted(measured.items())
                if prefix + stage in stages
            }
            axes.plot(cells.keys(), [getattr(cell, unit) for cell in cells.values()], marker="o", label=stage)
        axes.set(xscale="log", xlabel="images", title=f"{prefix.removesuffix(': ') or 'all'}, {unit}")
        if unit == "seconds":
            axes.set_yscale("log")
    panels[1].axhline(60, color="grey", linestyle="--", linewidth=1)
    panels[2].axhline(3, color="grey", linestyle="--", linewidth=1)
    panels[2].set(ylabel="GiB", ylim=(0, None))
    panels[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure each size, print the figures, and add them to million.json in the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--classes", type=int, default=1000, help="at most a hundredth of the images")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--l2", type=float, nargs="+", default=[10.0], help="strengths; each is a training of its own")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="in their order; all by default")
    parser.add_argument(
        "--more", nargs="*", choices=STAGES, help=f"those after {MORE:,} more images; the same by default"
    )
    parser.add_argument("--folder", type=Path, default=LOCAL / "million", help="working folder, on a disk")
    parser.add_argument("--keep", action="store_true", help="keep the last workspace")
    parser.add_argument("--picture", type=Path, help="file for a picture of the growth over all sizes so far")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    needed, free = max(arguments.images, default=0) * BYTES_PER_IMAGE, shutil.disk_usage(arguments.folder).free
    if free < needed:
        sys.exit(f"{arguments.folder} has {free / 1e9:.0f} GB free; {needed / 1e9:.0f} GB are needed")
    measured = read(arguments.folder / "million.json")
    for images in sorted(arguments.images):
        classes, root = min(arguments.classes, images // 100), (arguments.folder / "workspace").resolve()
        print(f"\n{images:,} images in {classes:,} classes, {arguments.backbone}", flush=True)
        measured.setdefault(images, {})
        more = arguments.stages if arguments.more is None else arguments.more
        options = arguments.backbone, tuple(arguments.l2), arguments.stages, more
        for stage, figures in measure(root, images, classes, *options):
            measured[images][stage] = figures
            write(measured, arguments.folder / "million.json")
            print(describe(stage, images, figures), flush=True)
    print_growth(measured)
    if arguments.picture:
        draw_growth(measured, arguments.picture)
    if not arguments.keep:
        shutil.rmtree(arguments.folder / "workspace", ignore_errors=True)


if __name__ == "__main__":
    main()
