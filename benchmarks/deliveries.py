"""Twenty deliveries onto the sample: a delivery is to cost what it brings, not what there is already.

python -m benchmarks.deliveries [--deliveries 20] [--images 100]    # in a workspace of its own, .rootstock/deliveries
"""

import argparse
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.project import copy_project
from rootstock.ingest import inbox
from rootstock.ingest.samples import write_sample
from tasks.backbone import backbone
from tasks.bridge import versions, workspace
from tasks.bridge.stage import Stage
from tasks.extract import extract
from tasks.ingest import ingest, ingest_with

ROOT = workspace.LOCAL / "deliveries"
INBOX, REMOTE, DRAWN = Path("data/inbox"), Path("shelf"), Path("drawn")


def deliver(number: int, images: int) -> None:
    """Put printed digits, turned and lit at random, into the inbox."""
    lot = random.Random(number)
    for place, path in enumerate(lot.sample(sorted(DRAWN.rglob("*.png")), images)):
        turned = Image.open(path).rotate(lot.uniform(-20, 20), fillcolor=int(lot.uniform(150, 255)))
        target = INBOX / "printed" / path.parent.name / f"{number:02d}-{place:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        turned.save(target)


def bring(stage: Stage) -> float:
    """Do a stage's work and record it; returns seconds."""
    start = time.perf_counter()
    stage(workspace.read_params())
    versions.commit(stage.name)
    return time.perf_counter() - start


def timed(act: Callable[[], object]) -> float:
    """Time an act, in seconds."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def pushed() -> int:
    """Count the bytes on the remote."""
    return sum(path.stat().st_size for path in REMOTE.rglob("*") if path.is_file())


def main() -> None:
    """Deliver, and print what each delivery took."""
    parser = argparse.ArgumentParser(description="Time deliveries onto the embedded sample.")
    parser.add_argument("--deliveries", type=int, default=20)
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    copy_project(ROOT)
    os.chdir(ROOT)
    subprocess.run(["dvc", "remote", "add", "--quiet", "--default", "shelf", str(REMOTE.resolve())], check=True)
    write_sample("printed", DRAWN)
    first = [bring(stage) for stage in (ingest, backbone, extract)]
    first.append(timed(versions.push))
    print(f"{'delivery':<10}{'images':>8}{'ingest':>9}{'extract':>9}{'push':>8}{'pushed':>12}{'tables now':>12}")
    print(f"{'sample':<10}{1797:>8}{first[0]:>8.2f}s{first[2]:>8.2f}s{first[3]:>7.2f}s{pushed():>12,}")
    for number in range(1, arguments.deliveries + 1):
        deliver(number, arguments.images)
        delivery = inbox.list_delivery(str(INBOX), 0)
        before = pushed()
        seconds = [bring(ingest_with(delivery.labelled)), bring(extract), timed(versions.push)]
        tables = sum(path.stat().st_size for path in workspace.DATASET.rglob("*") if path.is_file())
        inbox.delete(delivery, [item.path for item in delivery.labelled.items])
        row = f"{seconds[0]:>8.2f}s{seconds[1]:>8.2f}s{seconds[2]:>7.2f}s{pushed() - before:>12,}{tables:>12,}"
        print(f"{number:<10}{1797 + number * arguments.images:>8}{row}", flush=True)


if __name__ == "__main__":
    main()
