"""Demo of retraining on the samples: images of a new domain arrive, then a delivery with wrong labels.

make retrain-demo    # in its own workspace, .rootstock/demo, recreated each time
"""

import os
import random
import shutil
import subprocess
import sys
import time

from benchmarks.project import copy_project
from rootstock.config.params import Finetune, Ingest, Retrain, Source
from rootstock.ingest.samples import write_sample
from rootstock.system.entry_points import entry_point
from tasks.bridge.workspace import LOCAL

DEMO = LOCAL / "demo"
BAD = 3  # every third printed digit is delivered last, with a random label


def make_workspace() -> None:
    """Create the demo's workspace: handwritten digits, and heads on frozen features."""
    copy_project(
        DEMO,
        ingest=Ingest(sources=(Source(path="sample:digits", domain="handwritten"),)),
        finetune=Finetune(stages=()),
        retrain=Retrain(settle_seconds=1),
    )


def deliver(*, bad: bool) -> int:
    """Put printed digits into the inbox, bad ones with a random label; return their number."""
    rng = random.Random(0)
    printed = DEMO / "printed"
    if not printed.exists():
        write_sample("printed", printed)
    files = [path for path in sorted(printed.rglob("*.png")) if (int(path.stem) % BAD == 0) == bad]
    for path in files:
        label = str(rng.randrange(10)) if bad else path.parent.name
        target = DEMO / "data" / "inbox" / "printed" / label / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return len(files)


def run(flow: str) -> str:
    """Run a flow in the demo's workspace from the command line; return its output."""
    command = [sys.executable, "-m", f"flows.{flow}"]
    done = subprocess.run(command, cwd=DEMO, env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    """Run the demo."""
    start = time.perf_counter()
    make_workspace()
    print("\n=== Training on handwritten digits\n", flush=True)
    print(run("pipeline"))
    print(f"\n=== {deliver(bad=False)} printed digits arrive in the inbox\n", flush=True)
    print(run("retrain"))
    print(f"\n=== {deliver(bad=True)} more arrive, with random labels\n", flush=True)
    print(run("retrain"))
    print("\n=== Runs and champions (python -m flows.runs)\n")
    print(run("runs"))
    print(f"\n{time.perf_counter() - start:.0f} s; the workspace is {DEMO}")


if __name__ == "__main__":
    with entry_point("retrain-demo"):
        try:
            main()
        except subprocess.CalledProcessError as error:  # the flow has said why
            sys.exit(error.returncode)
