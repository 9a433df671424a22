"""A GPU and many cores: extraction, fine-tuning and ingest beside their limits, and beside the loop of a user.

    python -m benchmarks.gpu [--images 6000] [--parts decode extract tune ...] [--seconds 3] [--out figures.json]
    python -m benchmarks.gpu --parts reduced --images 400        # decode: reduced beside full, on any machine

Needs `rootstock/` alone, neither Prefect nor DVC. Without a GPU it runs everything on the CPU: --images 200 --size 96.
Photos are drawn (0.1 to 1.9 megapixels, 400 different ones, the rest copies with other last bytes), ingested once, and
resized to 224 pixels. Every figure is printed and written as it comes, in images/s unless it says otherwise.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from benchmarks.bench import CLASSES, NAMES, Bench, Views, extracted, prepare, rate_of
from rootstock.config import params
from rootstock.dataset import shards, tables
from rootstock.features import engines
from rootstock.features.engines import best_batch_size
from rootstock.images import decoding, gpu_decoding, loader, pixel_store, pixels
from rootstock.images.decoding import Decode
from rootstock.system import processes
from rootstock.system.parallel import cores, grouped, limit_to_one_core, ordered_map
from rootstock.system.processes import ordered_map_in_processes
from rootstock.training import batch_norm, finetune
from rootstock.training.classifier import Classifier
from rootstock.training.head import Head
from rootstock.training.split_images import SplitImages
from rootstock.training.step import TrainingStep
from rootstock.training.unfreezing import optimiser_of

TUNED_EPOCHS = 3
LARGE = 480_000  # pixels, from which on `reduced` decodes photos at half their size or less, for 224 pixels


def decode(bench: Bench) -> None:
    """Decode and resize files in memory: on threads, in processes, and by nvJPEG."""
    contents, transform = bench.contents(), bench.backbone("resnet50").transform
    counts = [count for count in (1, 2, 4, 8) if count < cores()]
    for how, threads in [*(("full", count) for count in (*counts, cores())), ("reduced", cores())]:
        groups = list(grouped(contents[: max(64, len(contents) * threads // cores())], 8))
        decoded = ordered_map(Views(transform, how), groups, threads, first=limit_to_one_core)
        bench.put(f"decode alone, {how}, {threads} threads", rate_of(decoded))
    views = Views(transform, "full")
    for _ in ordered_map_in_processes(views, grouped(contents[: 8 * cores()], 8), 0, first=limit_to_one_core):
        pass  # they have started
    decoded = ordered_map_in_processes(views, grouped(contents, 16), 0, first=limit_to_one_core)
    bench.put(f"decode alone, full, {cores()} processes", rate_of(decoded))
    if bench.device.type != "cuda":
        return
    files = [pixels.open_file(data) for data in contents[:2048]]
    encoded = [torch.frombuffer(bytearray(file.data), dtype=torch.uint8) for file in files]
    for _ in range(2):
        begin = time.perf_counter()
        for group in grouped(encoded, 256):
            gpu_decoding._decoded(group, bench.device)
        bench.wait()
        bench.put("nvJPEG alone", len(files) / (time.perf_counter() - begin))
    for threads in (1, 2, 2):
        seen = ordered_map(lambda part: gpu_decoding.views(part, transform, bench.device), grouped(files, 256), threads)
        bench.put(f"nvJPEG and resize, {threads} threads", rate_of(seen))


def reduced(bench: Bench) -> None:
    """Decode by `full` and `reduced`: images per second of one core's time, so that other programs do not matter."""
    transform, contents = bench.backbone("resnet50").transform, bench.contents()
    sizes = [file.stored[0] * file.stored[1] for file in map(pixels.open_file, contents)]

    def decoded(how: Decode, data: bytes) -> None:
        decoding.decode_opened(pixels.open_file(data), transform.resize if how == "reduced" else None)

    def resized(how: Decode, data: bytes) -> None:
        loader.view(data, transform, decode=how)

    for photos, is_large in ((f"of {LARGE / 1e6:g} megapixels or more", True), ("smaller", False)):
        chosen = [data for data, size in zip(contents, sizes, strict=True) if (size >= LARGE) == is_large]
        for what, step in (("decode", decoded), ("decode and resize", resized)):
            for how, rate in _rates_of_a_core(step, chosen, bench.seconds).items():
                bench.put(f"{what}, {how}, photos {photos}", rate)


def _rates_of_a_core(step: Callable[[Decode, bytes], None], photos: list[bytes], seconds: float) -> dict[Decode, float]:
    """Return how many photos a core decodes per second of its time, both ways measured in turn."""
    spent: dict[Decode, float] = {"full": 0.0, "reduced": 0.0}
    rounds = 0
    while photos and min(spent.values()) <= seconds:
        for how in spent:
            begin = time.process_time()
            for _ in ordered_map(partial(step, how), photos, 1, first=limit_to_one_core):
                pass
            spent[how] += time.process_time() - begin
        rounds += 1
    return {how: rounds * len(photos) / time_of for how, time_of in spent.items() if time_of}


def network(bench: Bench) -> None:
    """Compute features of a batch that is on the device already."""
    for name in NAMES:
        for precision in ("f32", "bf16"):
            backbone = bench.backbone(name)
            net = nn.Sequential(loader.Normalise(backbone.transform), backbone.network).eval().to(bench.device)
            net = net.to(memory_format=torch.channels_last)
            size = best_batch_size(bench.size, bench.device.type == "cuda")
            batch = torch.randint(256, (size, 3, bench.size, bench.size), dtype=torch.uint8, device=bench.device)
            batch = batch.contiguous(memory_format=torch.channels_last)

            def forward(net: nn.Module = net, batch: torch.Tensor = batch, precision: str = precision) -> None:
                with (
                    torch.inference_mode(),
                    torch.autocast(bench.device.type, torch.bfloat16, enabled=precision == "bf16"),
                    torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False),
                ):
                    net(batch)

            bench.put(f"network alone, {name}, {precision}", bench.rate(forward, size))


def extract(bench: Bench) -> None:
    """Extract from shards to feature files, as the stage does; the second pass is without start-up."""
    ways: list[tuple[Any, bool]] = [("full", False), ("full", True), ("reduced", True), ("gpu", False)]
    for name in NAMES:
        for how, in_processes in ways if bench.device.type == "cuda" else ways[:1]:
            settings = params.Extract(engine="eager", precision="bf16", decode=how)
            engine = engines.start_named("eager", bench.backbone(name), settings)
            with patch.object(processes, "FROM_IMAGES", 0 if in_processes else math.inf):
                for turn in ("first", "second"):
                    title = f"{name}, {how}{', in processes' if in_processes else ''}, {turn} pass"
                    bench.put(f"extraction, {title}", extracted(bench, name, settings, engine))


def tune(bench: Bench) -> None:
    """Fine-tune all layers: the step on a batch that is there, and the stage, whose later epochs read the store.

    The step is measured as the stage computes it, with batch norms folded into convolutions, and without that.
    """
    for name in NAMES:
        for batch_size in (32, 128):
            stage = params.Stage(unfreeze="all", epochs=TUNED_EPOCHS, lr=1e-4)
            settings = params.Finetune(stages=(stage,), batch_size=batch_size)
            for how, folds in (("batch norms not folded", False), ("folded, as in the stage", True)):
                _train_resident(bench, name, settings, how, folds=folds)
            for epoch, seconds in enumerate(_seconds_of_epochs(bench, name, settings), start=1):
                bench.put(f"fine-tuning, {name}, batch {batch_size}, epoch {epoch}", bench.tuned / seconds)


def _train_resident(bench: Bench, name: str, settings: params.Finetune, how: str, *, folds: bool) -> None:
    """Measure the training step on a batch that is on the device already."""
    model, size = _classifier(bench, name), settings.batch_size
    model.to(bench.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    batch = torch.randint(256, (size, bench.size, bench.size, 3), dtype=torch.uint8, device=bench.device)
    batch = batch.permute(0, 3, 1, 2)
    target = torch.arange(size, device=bench.device) % CLASSES
    with batch_norm.folded(model, batch) if folds else nullcontext():
        step = TrainingStep(model, optimiser_of(model, settings.stages[0], settings), settings)
        begin = time.perf_counter()
        step(batch, target).item()
        bench.put(f"first step, {name}, batch {size}, {how}, seconds", time.perf_counter() - begin)
        bench.put(f"training step, {name}, batch {size}, {how}", bench.rate(lambda: step(batch, target), size))


def _seconds_of_epochs(bench: Bench, name: str, settings: params.Finetune) -> list[float]:
    """Fine-tune, and return the seconds of each epoch."""
    manifest, images = tables.load_manifest(bench.folder / "dataset"), bench.folder / "images"
    model, transform = _classifier(bench, name), bench.backbone(name).transform
    rows = {split: manifest[manifest["split"] == split] for split in ("train", "val")}
    bench.tuned = len(rows["train"])
    with pixel_store.opened(bench.folder / "pixels", transform, images, shards.names(images), most_gb=50) as store:
        train, val = (SplitImages(split, images, store) for split in rows.values())
        checkpoint = bench.folder / f"checkpoint-{name}-{settings.batch_size}"  # from which no other one goes on
        return finetune.fine_tune(model, transform, train, val, settings, 0, checkpoint, "").seconds


def _classifier(bench: Bench, name: str) -> Classifier:
    backbone = bench.backbone(name)
    head = Head(
        np.zeros((CLASSES, backbone.width), np.float32), np.zeros(CLASSES, np.float32), ["class0", "class1"], 1.0
    )
    return Classifier(backbone.network, backbone.transform, head)


def loop(bench: Bench) -> None:
    """Measure the loop that a user would write: ImageFolder, DataLoader with all cores, bf16 autocast."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    for name in NAMES:
        backbone = bench.backbone(name)
        spec = backbone.transform
        transform = v2.Compose(
            [
                v2.Resize(spec.resize), v2.CenterCrop(spec.size), v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std),
            ]
        )  # fmt: skip
        net = backbone.network.eval().to(bench.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        pinned = bench.device.type == "cuda"
        size = user_batch_size(bench.images)
        batches = DataLoader(ImageFolder(bench.photos, transform), size, num_workers=cores(), pin_memory=pinned)

        def computed(net: nn.Module = net, batches: DataLoader[Any] = batches) -> Iterator[int]:
            with torch.inference_mode(), torch.autocast(bench.device.type, torch.bfloat16):
                for batch, _ in batches:
                    there = batch.to(bench.device, non_blocking=True).to(memory_format=torch.channels_last)
                    net(there).float().cpu()
                    yield len(batch)

        bench.put(f"user's loop, {name}, bf16, batch {size}", rate_after_first(computed()))


def user_batch_size(images: int) -> int:
    """Return the batch size of the user's loop: 256, or less where the first batch would be most of the images."""
    return max(1, min(256, images // 4))


def rate_after_first(batches: Iterator[int]) -> float:
    """Return images/s of batches that are given as their sizes, without the first, in which workers start.

    NaN if there is no other.
    """
    next(batches, 0)
    begin = time.perf_counter()
    images = sum(batches)
    return images / (time.perf_counter() - begin) if images else math.nan


PARTS = {"decode": decode, "reduced": reduced, "network": network, "extract": extract, "tune": tune, "loop": loop}


def main() -> None:
    """Measure the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.images, given.size, given.seconds, given.out)
        gpu = torch.cuda.get_device_name() if bench.device.type == "cuda" else "no GPU"
        print(f"{gpu}, {cores()} cores, torch {torch.__version__}", flush=True)
        prepare(bench)
        for part in given.parts:
            begin = time.perf_counter()
            PARTS[part](bench)
            print(f"({part}: {time.perf_counter() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
