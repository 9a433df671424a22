"""How long `dvc repro` and the flow take when nothing is stale, compared with DVC and Prefect alone.

python -m benchmarks.up_to_date [--runs 5]    # in a workspace where the pipeline has run
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PREFECT_ALONE = """
from prefect import flow, task

@task
def nothing(): pass

@flow
def six():
    [nothing.submit().result() for _ in range(6)]

six()
"""
DVC_ALONE = """
stages:
  look: {cmd: "true", always_changed: true}
"""


def median_seconds(command: list[str], folder: Path, runs: int) -> float:
    """Return the median wall-clock time of a command."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Print medians and differences."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    runs = arguments.parse_args().runs
    here = Path()
    with tempfile.TemporaryDirectory() as name:
        empty = Path(name)
        subprocess.run(["dvc", "init", "--no-scm", "-q"], cwd=empty, check=True)
        (empty / "dvc.yaml").write_text(DVC_ALONE)
        dvc = median_seconds(["dvc", "repro"], empty, runs)
        repro = median_seconds(["dvc", "repro"], here, runs)
        (empty / "alone.py").write_text(PREFECT_ALONE)
        prefect = median_seconds([sys.executable, "alone.py"], empty, runs)
    flow = median_seconds([sys.executable, "-m", "flows.pipeline"], here, runs)
    print(f"{'nothing to do':<24}{'alone':>8}{'ours':>8}{'more':>8}   (seconds, medians of {runs})")
    print(f"{'dvc repro':<24}{dvc:>8.2f}{repro:>8.2f}{repro - dvc:>8.2f}")
    print(f"{'python -m flows.pipeline':<24}{prefect:>8.2f}{flow:>8.2f}{flow - prefect:>8.2f}")


if __name__ == "__main__":
    main()
