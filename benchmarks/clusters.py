"""Extraction and fine-tuning by two workers, of which one is killed: seconds, and whether anything was lost.

python -m benchmarks.clusters [--images 100000] [--parts local dask ray torchrun] [--folder DIR]

Draws small JPEGs as benchmarks.million does. Each runner extracts their features, and a worker is killed once a third
of the files are there: they must be those that this process computes alone, byte for byte. Then torchrun fine-tunes the
last block for an epoch with two processes, undisturbed, and again with one of them killed halfway. Ray needs
`pip install -c constraints.txt -e '.[ray]'`.
"""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.million import SIDE, draw_all, run_module
from benchmarks.project import copy_project
from rootstock.config import params_file
from rootstock.config.params import Backbone, Extract, Finetune, Head, Ingest, Source
from rootstock.config.training_params import Stage
from rootstock.system.files import digest
from tasks.bridge.workspace import FEATURES, FINETUNED, LOCAL, PARAMS

CLASSES, SHARD_MB, WORKERS = 100, 4, 2
PARTS = ("local", "dask", "ray", "torchrun")
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(WORKERS), "--max-restarts", "1", "-m")
Find = Callable[[psutil.Process], psutil.Process | None]  # among the descendants of a process


def make_workspace(root: Path, images: int) -> None:
    """Create a workspace with many shards and all that comes before extraction."""
    copy_project(
        root,
        ingest=Ingest(sources=(Source(path="photos", domain="drawn"),), shard_mb=SHARD_MB),
        backbone=Backbone(image_size=SIDE),
        head=Head(l2=(10.0,)),
        finetune=Finetune(
            stages=(Stage(unfreeze="last_block", epochs=1, lr=0.0005),), frozen_layers="compute", processes=WORKERS,
            checkpoint_minutes=0.2,
        ),
    )  # fmt: skip
    draw_all(root / "photos", range(images), min(CLASSES, images // 100))
    for stage in ("ingest", "backbone"):
        run(root, f"tasks.{stage}")


def run(root: Path, *module: str, find: Find | None = None) -> tuple[float, int]:
    """Run a Python module in a workspace and kill the process that `find` finds; return seconds, and kills."""
    kills = 0

    def look(process: psutil.Process) -> None:
        nonlocal kills
        if find and not kills and (victim := find(process)):
            os.kill(victim.pid, signal.SIGKILL)
            kills += 1

    threads = {"OMP_NUM_THREADS": "1" if find else str(psutil.cpu_count())}
    return run_module(root, root / "run.log", *module, look=look, env=threads), kills


def extracted(root: Path) -> list[Path]:
    """Return the feature files that are there."""
    return sorted((root / FEATURES).rglob("*.parquet"))


def extract(root: Path, runner: str) -> str:
    """Extract with a runner, killing one worker of several; print what it took, and return a digest of the features."""
    shutil.rmtree(root / FEATURES, ignore_errors=True)
    params = params_file.load(root / PARAMS)
    asked = Extract.model_validate({"engine": "openvino", "runner": runner, "workers": WORKERS})
    params_file.save(root / PARAMS, params.model_copy(update={"extract": asked}))
    shards = len(list((root / "data/images").glob("*.tar")))

    def find(process: psutil.Process) -> psutil.Process | None:
        if len(extracted(root)) < shards / 3:
            return None
        return next(filter(at_work, process.children(recursive=True)), None)

    seconds, kills = run(root, "tasks.extract", find=None if runner == "local" else find)
    print(f"{runner:<10} {seconds:>7.1f} s, {kills} of {WORKERS} workers killed, {shards} shards", flush=True)
    return digest(extracted(root))


def at_work(process: psutil.Process) -> bool:
    """Check whether a process is a worker of Dask or Ray."""
    try:
        command = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    return "spawn_main" in command or (command.startswith("ray::") and "Agent" not in command)


def fine_tune(root: Path, *, kill: bool) -> str:
    """Fine-tune with torchrun, killing a process if asked; print what it took, and return a digest of the network."""
    shutil.rmtree(root / FINETUNED, ignore_errors=True)

    def find(process: psutil.Process) -> psutil.Process | None:
        if not kill or not list((root / LOCAL).glob("finetune.pt*")):
            return None
        return next((one for one in process.children(recursive=True) if is_second(one)), None)

    seconds, kills = run(root, *TORCHRUN, "tasks.fine_tune", find=find)
    print(f"torchrun   {seconds:>7.1f} s, {kills} of {WORKERS} processes killed", flush=True)
    return digest(sorted((root / FINETUNED).glob("*.safetensors")))


def is_second(process: psutil.Process) -> bool:
    """Check whether a process is the second of those that torchrun has started."""
    try:
        return process.environ().get("RANK") == "1" and "tasks.fine_tune" in process.cmdline()
    except psutil.Error:
        return False


def compare(what: str, digests: list[str]) -> None:
    """Say whether all runs wrote the same bytes; exit with status 1 if not."""
    if len(set(digests)) > 1:
        sys.exit(f"{what} of a run with a killed worker differ")
    print(f"{what}: the same bytes", flush=True)


def main() -> None:
    """Measure each part; exit with status 1 if a killed worker changed a byte."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--folder", type=Path, default=LOCAL / "clusters", help="working folder, on a disk")
    asked = parser.parse_args()
    root = (asked.folder / "workspace").resolve()
    make_workspace(root, asked.images)
    if runners := [part for part in asked.parts if part != "torchrun"]:
        compare("features", [extract(root, runner) for runner in runners])
    if "torchrun" in asked.parts:
        for stage in ("extract", "train_head"):
            run(root, f"tasks.{stage}")
        compare("networks", [fine_tune(root, kill=kill) for kill in (False, True)])
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
