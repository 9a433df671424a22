"""Load a server on loopback: its capacity, its latency at half of it, four times of it, and what is left of that.

    pip install -c constraints.txt -e '.[bench]'
    python -m benchmarks.serve data/model photos/ --seconds 20

Beside the server runs locust, on the same cores. Printed are, for each load, requests/s by status, their latencies, and
the server's memory; before, the speed of `Model.predict` on the same images, and of its engine for batches.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from rootstock.model.serving import served
from rootstock.system.parallel import cores

LOCUSTFILE = Path(__file__).with_name("load.py")
CLIENTS, MANY = 16, 200  # at most the capacity, and four times of it
MIB = 2**20
Load = dict[str, tuple[float, float, float]]  # by status: requests/s, p50 and p99 in ms


@contextmanager
def serving(model: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve a model; yield the address and the process."""
    command = [sys.executable, "-m", "rootstock.model.serving", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r" at (http://\S+)", process.stdout.readline())
            assert found, "the server did not start"
            yield found[1], psutil.Process(process.pid)
        finally:
            process.terminate()


def load(address: str, images: Path, clients: int, rate: float, seconds: int) -> Load:
    """Load a server for some seconds; a rate of 0 is as fast as it answers."""
    command = [
        sys.executable, "-m", "locust", "--headless", "--json", "--loglevel", "ERROR", "--locustfile", str(LOCUSTFILE),
        "--host", address, "--users", str(clients), "--spawn-rate", str(clients), "--run-time", f"{seconds}s",
        "--stop-timeout", "30", "--images", str(images), "--rate", f"{rate:.2f}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = json.loads(done.stdout)
    return {row["name"]: (row["num_requests"] / seconds, *_percentiles(row["response_times"])) for row in rows}


def _percentiles(times: dict[str, int]) -> tuple[float, float]:
    """Return the median and the 99th percentile of times in ms, given how often each occurred."""
    ordered = sorted((float(time), count) for time, count in times.items())
    total, found = sum(count for _, count in ordered), []
    for share in (0.5, 0.99):
        seen = 0
        for milliseconds, count in ordered:
            seen += count
            if seen >= share * total:
                found.append(milliseconds)
                break
    return found[0], found[1]


def alone(model: Path, images: Path, seconds: float) -> tuple[float, float]:
    """Return the images/s of `Model.predict`, and of the engine for batches with the same checks, without a server."""
    loaded = served.load(served.in_folder(model))
    files = [path.read_bytes() for path in sorted(images.rglob("*.jpg"))]
    begin, done = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds:
        loaded.model.predict(files)
        done += len(files)
    one = done / (time.perf_counter() - begin)
    groups = [files[start : start + loaded.batch_size] for start in range(0, len(files), loaded.batch_size)]
    begin, done = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds:
        prepared = loaded.extractor_of_batches.features(
            groups, lambda group: (len(group), [loaded.prepare("", data) for data in group])
        )
        done += sum(count for count, _ in prepared)
    return one, done / (time.perf_counter() - begin)


def show(what: str, found: Load, process: psutil.Process) -> None:
    """Print a line of the table for each status."""
    for status, (rate, median, most) in sorted(found.items()):
        memory = process.memory_info().rss / MIB
        print(f"| {what} | {status} | {rate:.1f} | {median:.0f} | {most:.0f} | {memory:.0f} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("images", type=Path, help="folder of JPEGs (*.jpg), at any depth")
    parser.add_argument("--seconds", type=int, default=20, help="of each load (default: 20)")
    asked = parser.parse_args()
    one, batches = alone(asked.model, asked.images, asked.seconds / 2)
    print(f"{cores()} cores; Model.predict: {one:.1f} images/s; the engine for batches: {batches:.1f} images/s\n")
    print("| load | status | requests/s | p50, ms | p99, ms | memory, MiB |\n|---|---|--:|--:|--:|--:|")
    with serving(asked.model) as (address, process):
        load(address, asked.images, CLIENTS, 0, 3)  # nothing is measured before all is loaded
        full = load(address, asked.images, CLIENTS, 0, asked.seconds)
        show(f"{CLIENTS} clients, as fast as they are answered", full, process)
        capacity = full["200"][0]
        for what, share, clients in (("half", 0.5, CLIENTS), ("4 times", 4, MANY), ("half, afterwards", 0.5, CLIENTS)):
            found = load(address, asked.images, clients, share * capacity, asked.seconds)
            show(f"{what}: {share * capacity:.0f} requests/s", found, process)


if __name__ == "__main__":
    main()
