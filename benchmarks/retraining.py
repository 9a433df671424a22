"""What a retraining costs beyond extraction where champion and challenger are heads: 4,000 images, 1,000 of them new.

python -m benchmarks.retraining [--images 4000] [--new 1000]    # in its own workspace, .rootstock/retraining

Prints the seconds of each stage, of the run as Prefect records it, of the whole process, what is left of these two
without extraction, and the seconds of a run that finds nothing new. PREFECT_API_URL names a server that is running;
else each process starts one, which its own seconds include.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.sorting import FlowRunSort

from benchmarks.project import copy_project
from rootstock.config.params import Finetune, Ingest, Retrain, Source
from rootstock.ingest.samples import write_sample
from tasks.bridge.workspace import LOCAL

ROOT = LOCAL / "retraining"
DIGITS = 1797


def draw(folder: Path, images: int, seed: int) -> None:
    """Write printed digits, each turned by a random angle on a random grey, into one folder per class."""
    rng = random.Random(seed)
    drawn = ROOT / "printed"
    if not drawn.exists():
        write_sample("printed", drawn)
    files = sorted(drawn.rglob("*.png"))
    for number in range(images):
        path = rng.choice(files)
        turned = Image.open(path).rotate(rng.uniform(-25, 25), fillcolor=int(rng.uniform(100, 255)))
        target = folder / path.parent.name / f"{number:05d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        turned.save(target)


def make_workspace(images: int) -> None:
    """Create a workspace whose sources have a number of images, without stages of fine-tuning."""
    sources = (Source(path="sample:digits", domain="handwritten"), Source(path="photos", domain="printed"))
    copy_project(ROOT, ingest=Ingest(sources=sources), finetune=Finetune(stages=()), retrain=Retrain(settle_seconds=0))
    draw(ROOT / "photos", images - DIGITS, 0)


def run(flow: str) -> float:
    """Run a flow in the workspace from the command line; return seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", f"flows.{flow}"], cwd=ROOT, env=os.environ, check=True)
    return time.perf_counter() - start


def seconds_of_run() -> float:
    """Return the seconds of the last run of retrain, from its start to its end."""
    named = FlowFilter(name=FlowFilterName(any_=["retrain"]))
    with get_client(sync_client=True) as client:
        (last,) = client.read_flow_runs(flow_filter=named, limit=1, sort=FlowRunSort.START_TIME_DESC)
    return last.total_run_time.total_seconds()


def seconds_of_stages() -> dict[str, float]:
    """Return the seconds of each stage's last run."""
    lines = (ROOT / LOCAL / "runs.jsonl").read_text().splitlines()
    return {str(entry["stage"]): float(entry["seconds"]) for entry in map(json.loads, lines)}


def main() -> None:
    """Train a champion, deliver, retrain, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--new", type=int, default=1000)
    arguments = parser.parse_args()
    make_workspace(arguments.images - arguments.new)
    run("pipeline")
    draw(ROOT / "data" / "inbox" / "delivered", arguments.new, 1)
    process, stages = run("retrain"), seconds_of_stages()
    of_run, idle = seconds_of_run(), run("retrain")
    print(*(f"{stage:<12}{seconds:>8.1f} s" for stage, seconds in stages.items()), sep="\n")
    for name, seconds in (("run", of_run), ("process", process)):
        print(f"{name:<12}{seconds:>8.1f} s, {seconds - stages['extract']:.1f} s beyond extraction")
    print(f"{'idle':<12}{idle:>8.1f} s for a run that finds nothing new: start-up of Python, Prefect and DVC")


if __name__ == "__main__":
    main()
