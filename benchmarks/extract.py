"""Feature extraction compared with a plain PyTorch loop and with the limit of the machine.

    python -m benchmarks.extract                        # 500 photo-like JPEGs at 224 px, 5,000 small PNGs at 96 px
    python -m benchmarks.extract --backbones resnet18 resnet50 --sets photos
    python -m benchmarks.extract --script extract_onnxruntime.py    # also compared with a script that prints images/s

The loop is benchmarks/loop.py: ImageFolder, Pillow's transforms, DataLoader(num_workers=2), model.eval(), fp32, eager.
Forward and decode are each measured separately on all cores, in the same run; the limit is 1 / (1/forward + 1/decode),
since on a CPU the two share the cores. Rates are medians over interleaved rounds, start-up excluded.
"""

import argparse
import io
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image

from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.dataset import shards
from rootstock.features import computing, engines
from rootstock.features.engines import Engine, Unavailable
from rootstock.images import decoding
from rootstock.ingest import ingest
from rootstock.system.parallel import cores, grouped, limit_to_one_core, ordered_map

SIDES = [(375, 500), (500, 375), (333, 500), (480, 640), (768, 1024), (1024, 683), (600, 800), (1200, 1600)]
SECONDS = 4.0  # per round, of the loop and of forward alone


@dataclass(frozen=True)
class Pictures:
    """A folder of images, their shards, and the backbone's input size."""

    name: str
    folder: Path
    images: Path
    size: int
    count: int


def draw_photo(index: int, sides: tuple[int, int], quality: int | None) -> bytes:
    """Draw a photo-like image (large soft shapes, smaller ones, grain) as JPEG, or as PNG without a quality."""
    rng = np.random.default_rng(index)
    height, width = sides
    layers = np.zeros((height, width, 3))
    for cells, share in ((5, 0.6), (24, 0.25), (90, 0.1)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        layers += share * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    layers += rng.normal(6, 5, (height, width, 1))
    file = io.BytesIO()
    image = Image.fromarray(layers.clip(0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=quality) if quality else image.save(file, "PNG")
    return file.getvalue()


def prepare(base: Path, name: str, count: int, size: int) -> Pictures:
    """Draw a set of images and ingest it."""
    folder = base / name / "source"

    def draw(index: int) -> None:
        photos = name == "photos"
        sides = SIDES[index % len(SIDES)] if photos else (40 + index % 50, 40 + index % 41)
        path = folder / f"class{index % 2}" / f"{index:05d}.{'jpg' if photos else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_photo(index, sides, 88 if photos else None))

    for _ in ordered_map(draw, range(count)):
        pass
    settings = params.Ingest(sources=(params.Source(path=str(folder), domain="drawn"),))
    rates, decoding_rates = [], []
    for turn in range(4):  # the first one imports pandas
        there = base / name / ("images" if turn == 3 else f"images{turn}")
        begin = time.perf_counter()
        ingest.ingest(settings, 0, there, base / name / f"dataset{turn}", base / name / f"scratch{turn}")
        rates.append(count / (time.perf_counter() - begin))
        decoding_rates.append(decode_files(folder))
    rate, alone = statistics.median(rates[1:]), statistics.median(decoding_rates[1:])
    print(f"\n{count:,} {name}: ingest {rate:.0f} images/s, decoding only {alone:.0f}: {rate / alone:.0%}")
    return Pictures(name, folder, base / name / "images", size, count)


def decode_files(folder: Path) -> float:
    """Return the rate of reading and decoding files at full size on all cores, a lower bound on ingest's work."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    begin = time.perf_counter()
    for _ in ordered_map(lambda few: [decoding.decode(path.read_bytes()) for path in few], grouped(paths, 8)):
        pass
    return len(paths) / (time.perf_counter() - begin)


def forward_alone(engine: Engine, size: int) -> Callable[[], float]:
    """Return a function that measures the network without decoding, on all cores."""
    batch = np.random.default_rng(0).integers(0, 256, (engine.batch_size, 3, size, size), np.uint8)

    def rounds() -> float:
        begin, seen = time.perf_counter(), 0
        for number, features in enumerate(ordered_map(engine.forward, repeat(batch), first=limit_to_one_core)):
            if number == 0:
                begin = time.perf_counter()
                continue
            seen += len(features)
            if time.perf_counter() - begin > SECONDS:
                break
        return seen / (time.perf_counter() - begin)

    return rounds


def decode_alone(pictures: Pictures, backbone: backbones.Backbone) -> Callable[[], float]:
    """Return a function that measures reading, decoding and resizing without a network, on all cores."""
    nothing = Engine("eager", lambda seen: np.zeros((len(seen), 1), np.float32), batch_size=4)
    return whole_extraction(nothing, pictures, replace(backbone, width=1), params.Extract())


def whole_extraction(
    engine: Engine, pictures: Pictures, backbone: backbones.Backbone, settings: params.Extract
) -> Callable[[], float]:
    """Return a function that measures a whole extraction, from shards to Parquet files on disk."""

    def rounds() -> float:
        with tempfile.TemporaryDirectory() as folder:
            names = shards.names(pictures.images)
            files = [computing.File(Path(folder) / f"{name}.parquet", name, 0) for name in names]
            begin = time.perf_counter()
            computing.compute(files, engine, backbone, settings, pictures.images, lambda n, **counts: None)
            return pictures.count / (time.perf_counter() - begin)

    return rounds


def script(*command: str) -> Callable[[], float]:
    """Return a function that runs a script in a separate process and reads the rate it prints."""

    def rounds() -> float:
        output = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True).stdout
        found = re.search(r"([\d.]+) (?:images/s|a second)", output)
        assert found, output
        return float(found[1])

    return rounds


def compare(pictures: Pictures, name: str, base: Path, args: argparse.Namespace) -> None:
    """Print a table for one backbone on one set of images."""
    folder = base / f"{name}-{pictures.size}"
    if not folder.exists():
        weights = "pretrained" if name == "efficientnet_lite0" else "random"
        backbones.prepare(params.Backbone(name=name, weights=weights, image_size=pictures.size), 0, folder)
    backbone = backbones.load(folder)
    runs: dict[str, Callable[[], float]] = {
        "loop": script("-m", "benchmarks.loop", str(pictures.folder), str(folder), str(SECONDS)),
        "decode": decode_alone(pictures, backbone),
    }
    if args.script and name == "efficientnet_lite0" and pictures.size == 224:
        runs["script"] = script(str(args.script), str(pictures.folder))
    starts = {}
    for entry in args.engines:
        engine_name, _, precision = entry.partition(":")
        begin = time.perf_counter()
        try:
            engine = engines.start(engine_name, backbones.load(folder), precision or "f32")
        except Unavailable as why:
            print(f"{entry}: {why}")
            continue
        engine_settings = params.Extract(engine=engine_name, precision=precision or "f32")
        starts[entry] = time.perf_counter() - begin
        runs[f"forward {entry}"] = forward_alone(engine, pictures.size)
        runs[f"all {entry}"] = whole_extraction(engine, pictures, backbone, engine_settings)
    rates: dict[str, list[float]] = {title: [] for title in runs}
    for _ in range(args.rounds):
        for title, run in runs.items():
            rates[title].append(run())
    show(pictures, name, {title: statistics.median(found) for title, found in rates.items()}, starts)


def show(pictures: Pictures, name: str, rate: dict[str, float], starts: dict[str, float]) -> None:
    """Print rates and ratios."""
    print(f"\n{name}, {pictures.count:,} {pictures.name} at {pictures.size} px: images/s, {cores()} cores")
    print(f"  plain loop {rate['loop']:.1f}, decoding only {rate['decode']:.0f}", end="")
    print(f", script {rate['script']:.1f}" if "script" in rate else "")
    print(f"  {'engine':18}{'start s':>8}{'forward':>9}{'limit':>8}{'reached':>9}{'of limit':>9}{'x loop':>8}", end="")
    print(f"{'x script':>9}" if "script" in rate else "")
    for entry, start_s in starts.items():
        forward, reached = rate[f"forward {entry}"], rate[f"all {entry}"]
        limit = 1 / (1 / forward + 1 / rate["decode"])
        print(f"  {entry:18}{start_s:8.1f}{forward:9.1f}{limit:8.1f}{reached:9.1f}", end="")
        print(f"{reached / limit:9.0%}{reached / rate['loop']:8.1f}", end="")
        print(f"{reached / rate['script']:9.2f}" if "script" in rate else "", flush=True)


def main() -> None:
    """Measure the chosen backbones, engines and sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["efficientnet_lite0", "resnet18", "resnet50"])
    parser.add_argument("--engines", nargs="+", default=["eager", "openvino", "openvino:bf16"])
    parser.add_argument("--sets", nargs="+", default=["photos", "small"], choices=["photos", "small"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--script", type=Path, help="prints '<n> images/s' for a folder; efficientnet_lite0 at 224 px")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        sets = {"photos": (500, 224), "small": (5000, 96)}
        for name in args.sets:
            pictures = prepare(base, name, *sets[name])
            for backbone in args.backbones:
                compare(pictures, backbone, base, args)


if __name__ == "__main__":
    main()
