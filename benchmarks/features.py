"""A million features of 1,280 values: write, index, and train on them, each step in a separate process.

    python -m benchmarks.features                     # 5 GB on disk, a few minutes
    python -m benchmarks.features --classes 1000      # six minutes
    python -m benchmarks.features --images 50000 --layouts
    python -m benchmarks.features --images 50000 --layouts --of data/features/0123456789ab    # real features, repeated

Prints seconds, GB/s and peak memory of each step. `--layouts` writes and reads the same features in other Parquet
layouts, which is how the one in rootstock/features/feature_files.py was chosen.
"""

import argparse
import hashlib
import multiprocessing
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rootstock.dataset import tables
from rootstock.features import feature_files
from rootstock.features.reader import Features
from rootstock.training import logistic

WIDTH, SHARD_IMAGES = 1280, 2600  # 2,600 photos of 100 kB make a shard of 256 MB
LAYOUTS: dict[str, dict[str, Any]] = {
    "none": {"compression": "none"},
    "lz4": {"compression": "lz4"},
    "zstd": {"compression": "zstd", "compression_level": 1},
    "zstd, bytes split": {
        "compression": "zstd",
        "column_encoding": {"feature.list.element": "BYTE_STREAM_SPLIT", "image_id": "PLAIN"},
    },
}


@dataclass(frozen=True)
class Size:
    """How many images, of how many classes."""

    images: int
    classes: int


def name_of(index: int) -> str:
    """Return the id of a synthetic image."""
    return hashlib.sha256(str(index).encode()).hexdigest()


def drawn(start: int, stop: int, classes: int = 10) -> NDArray[np.float32]:
    """Draw features like those of a network, slightly separated by class: non-negative, many of them small."""
    rng = np.random.default_rng(start)
    values: NDArray[np.float32] = np.maximum(
        rng.standard_normal((stop - start, WIDTH), np.float32) + np.float32(0.3), 0
    )
    values[np.arange(stop - start), np.arange(start, stop) % classes] += 1
    return values


def write(folder: Path, size: Size) -> str:
    """Write one feature file per shard."""
    seconds = 0.0
    for number, start in enumerate(range(0, size.images, SHARD_IMAGES)):
        stop = min(start + SHARD_IMAGES, size.images)
        batches = [([name_of(index) for index in range(start, stop)], drawn(start, stop, size.classes))]
        begin = time.perf_counter()
        feature_files.write(folder / "key" / f"{number:06d}-00000000.parquet", batches, WIDTH, "float32", {})
        seconds += time.perf_counter() - begin
    return f"{size_of(folder) / 1e9 / seconds:.2f} GB/s, synced to disk"


def write_manifest(folder: Path, size: Size) -> str:
    """Write a manifest with all columns filled."""
    index, images = np.arange(size.images), size.images
    table = pd.DataFrame({"image_id": [name_of(number) for number in range(images)], "source": "photos"})
    table["path"] = [f"class{number % size.classes:04d}/{number:07d}.jpg" for number in range(images)]
    table["label"] = [f"class{number % size.classes:04d}" for number in range(images)]
    table["class_index"] = index % size.classes
    table["domain"], table["format"], table["batch"] = "photos", "JPEG", 0
    place = index // size.classes % 20
    table["split"] = np.where(place < 14, "train", np.where(place < 17, "val", "test"))
    table["width"] = table["height"] = 500
    table["group_id"] = table["image_id"]
    table["shard"] = [f"{number // SHARD_IMAGES:06d}-00000000" for number in range(images)]
    table["offset"], table["size"] = 102400 * (index % SHARD_IMAGES), 100_000
    empty = tables.load(folder)
    tables.save(folder / "dataset", tables.Dataset(table, empty.rejected, empty.ledger, {}))
    return ""


def read(folder: Path, size: Size) -> str:
    """Read every file once, as training does, from the page cache."""
    done = 0
    begin = time.perf_counter()
    for _, _, features in feature_files.read(sorted((folder / "key").iterdir())):
        done += features.nbytes
    return f"{done / 1e9 / (time.perf_counter() - begin):.2f} GB/s"


def index(folder: Path, size: Size) -> str:
    """Read the manifest and locate each split's features."""
    manifest = tables.load_manifest(folder / "dataset")
    parts = [Features(folder / "key", manifest[manifest["split"] == split]) for split in ("train", "val", "test")]
    return f"{sum(map(len, parts)):,} rows"


def train(folder: Path, size: Size) -> str:
    """Train a head as the stage does where its temporary file has no room: one L2 strength, ten iterations."""
    manifest = tables.load_manifest(folder / "dataset")
    train, val = (Features(folder / "key", manifest[manifest["split"] == split]) for split in ("train", "val"))
    names = tables.classes_of(manifest)
    del manifest
    passes = 0

    class Counting(Features):
        def __iter__(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
            nonlocal passes
            passes += 1
            return super().__iter__()

    train.__class__ = Counting
    begin = time.perf_counter()
    fitted = logistic.fit_logistic_path(train, val, names, (1.0,), max_iterations=10)
    rate = passes * len(train) * WIDTH * 4 / 1e9 / (time.perf_counter() - begin)
    return f"{passes} passes at {rate:.2f} GB/s, validation {fitted.path[0]['val_accuracy']:.1%}"


def measured(step: Callable[[Path, Size], str], folder: Path, size: Size) -> None:
    """Run a step in a separate process, and print its time and memory."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        seconds, peak, result = pool.apply(_timed, (step, folder, size))
    print(f"  {step.__name__:16}{seconds:8.1f} s {peak / 2**30:6.2f} GiB  {result}", flush=True)


def _timed(step: Callable[[Path, Size], str], folder: Path, size: Size) -> tuple[float, int, str]:
    begin = time.perf_counter()
    result = step(folder, size)
    return time.perf_counter() - begin, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, result


def repeated(key: Path, images: int) -> NDArray[np.float32]:
    """Repeat the features under a key to a given number of images."""
    values = np.concatenate([features for *_, features in feature_files.read(sorted(key.glob("*.parquet")))])
    return np.concatenate([values] * -(-images // len(values)))[:images]


def compare_layouts(folder: Path, values: NDArray[np.float32]) -> None:
    """Write and read the same features (n, width) in several Parquet layouts."""
    names = [name_of(number) for number in range(len(values))]
    print(f"  {(values == 0).mean():.0%} of the values are 0")
    print(f"  {'layout':28}{'size':>7}{'write GB/s':>12}{'read GB/s':>11}")
    for dtype in ("float32", "float16"):
        for title, layout in LAYOUTS.items():
            if dtype == "float16" and "split" in title:
                continue  # Parquet does not support this encoding for float16 here
            writes, reads = [], []
            path = folder / "layout.parquet"
            for _ in range(3):
                begin = time.perf_counter()
                _write_as(path, names, values.astype(dtype), layout)
                writes.append(time.perf_counter() - begin)
                begin = time.perf_counter()
                read = sum(features.nbytes for *_, features in feature_files.read([path]))
                reads.append(time.perf_counter() - begin)
            stored = values.nbytes if dtype == "float32" else values.nbytes / 2
            print(
                f"  {dtype + ', ' + title:28}{path.stat().st_size / stored:7.2f}"
                f"{stored / 1e9 / statistics.median(writes):12.2f}{read / 1e9 / statistics.median(reads):11.2f}",
                flush=True,
            )


def _write_as(path: Path, names: list[str], values: NDArray[Any], layout: dict[str, Any]) -> None:
    schema = feature_files.schema(values.shape[1], str(values.dtype), {})
    with pq.ParquetWriter(path, schema, use_dictionary=False, write_statistics=False, **layout) as writer:
        rows = feature_files.rows_per_group(values.shape[1], str(values.dtype))
        for start in range(0, len(values), rows):
            part = values[start : start + rows]
            flat = pa.array(part.reshape(-1), schema.field("feature").type.value_type)
            feature = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("feature").type)
            ids = pa.array(names[start : start + len(part)])
            writer.write_table(pa.Table.from_arrays([ids, feature], schema=schema))


def size_of(folder: Path) -> int:
    """Return the total size of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="working folder; by default the system's temporary folder")
    parser.add_argument("--layouts", action="store_true", help="compare layouts of Parquet instead")
    parser.add_argument("--of", type=Path, metavar="KEY", help="use the features in this folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        needed = args.images * WIDTH * 4 * 1.1
        if shutil.disk_usage(folder).free < needed:
            parser.error(
                f"{folder} has less than {needed / 1e9:.0f} GB free; choose another --folder or fewer --images"
            )
        print(f"{args.images:,} x {WIDTH} float32 of {args.classes:,} classes: {args.images * WIDTH * 4 / 1e9:.1f} GB")
        if args.layouts:
            compare_layouts(folder, repeated(args.of, args.images) if args.of else drawn(0, args.images))
            return
        for step in (write, write_manifest, read, index, train):
            measured(step, folder, Size(args.images, args.classes))


if __name__ == "__main__":
    main()
