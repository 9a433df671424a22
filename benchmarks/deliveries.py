"""Twenty deliveries added to the sample: the cost should depend on the new images, not on the existing ones.

python -m benchmarks.deliveries [--deliveries 20] [--images 100]    # in its own workspace, .rootstock/deliveries
"""

import argparse
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.project import copy_project, size_of
from rootstock.ingest import inbox
from rootstock.ingest.samples import write_sample
from tasks.backbone import backbone
from tasks.bridge import versions, workspace
from tasks.bridge.stage import Stage
from tasks.extract import extract
from tasks.ingest import ingest, ingest_with

ROOT = workspace.LOCAL / "deliveries"
INBOX, REMOTE, DRAWN = Path("data/inbox"), Path("remote"), Path("drawn")


def deliver(number: int, images: int) -> None:
    """Put randomly rotated printed digits into the inbox."""
    rng = random.Random(number)
    for place, path in enumerate(rng.sample(sorted(DRAWN.rglob("*.png")), images)):
        turned = Image.open(path).rotate(rng.uniform(-20, 20), fillcolor=int(rng.uniform(150, 255)))
        target = INBOX / "printed" / path.parent.name / f"{number:02d}-{place:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        turned.save(target)


def run_stage(stage: Stage) -> float:
    """Run a stage and commit it to DVC; return seconds."""
    start = time.perf_counter()
    stage(workspace.read_params())
    versions.commit(stage.name)
    return time.perf_counter() - start


def timed(act: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def main() -> None:
    """Deliver, and print the time of each delivery."""
    parser = argparse.ArgumentParser(description="Time deliveries added to the embedded sample.")
    parser.add_argument("--deliveries", type=int, default=20)
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    copy_project(ROOT)
    os.chdir(ROOT)
    subprocess.run(["dvc", "remote", "add", "--quiet", "--default", "remote", str(REMOTE.resolve())], check=True)
    write_sample("printed", DRAWN)
    first = [run_stage(stage) for stage in (ingest, backbone, extract)]
    first.append(timed(versions.push))
    print(f"{'delivery':<10}{'images':>8}{'ingest':>9}{'extract':>9}{'push':>8}{'pushed':>12}{'table bytes':>12}")
    print(f"{'sample':<10}{1797:>8}{first[0]:>8.2f}s{first[2]:>8.2f}s{first[3]:>7.2f}s{size_of(REMOTE):>12,}")
    for number in range(1, arguments.deliveries + 1):
        deliver(number, arguments.images)
        delivery = inbox.list_delivery(str(INBOX), 0)
        before = size_of(REMOTE)
        seconds = [run_stage(ingest_with(delivery.labelled)), run_stage(extract), timed(versions.push)]
        tables = size_of(workspace.DATASET)
        inbox.delete(delivery, [item.path for item in delivery.labelled.items])
        row = f"{seconds[0]:>8.2f}s{seconds[1]:>8.2f}s{seconds[2]:>7.2f}s{size_of(REMOTE) - before:>12,}{tables:>12,}"
        print(f"{number:<10}{1797 + number * arguments.images:>8}{row}", flush=True)


if __name__ == "__main__":
    main()
