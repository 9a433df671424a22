"""Load a server on loopback: its capacity, its latency at half of it, four times of it, and what is left of that.

    pip install -c constraints.txt -e '.[bench]'
    python -m benchmarks.serve data/model photos/ --seconds 20

Beside the server runs locust, on the same cores. Printed are, for each load, requests/s by status, their latencies, and
the server's memory and CPU time; before, images/s and CPU time of `Model.predict` on them, and of the engine in
batches. CPU times can be compared on a busy machine, too.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from rootstock.features.preparing import Prepared
from rootstock.model.serving import served
from rootstock.system.parallel import cores, grouped

LOCUSTFILE = Path(__file__).with_name("load.py")
CLIENTS, MANY = 16, 600  # for the capacity; for four times of it, as most of them wait for their answer
MIB = 2**20
Load = dict[str, tuple[float, float, float]]  # by status: requests/s, p50 and p99 in ms


@contextmanager
def serving(model: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve a model; yield the address and the process."""
    command = [sys.executable, "-m", "rootstock.model.serving", str(model), "--port", "0", "--connections", str(MANY)]
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
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # its status says if any was refused
    if not done.stdout:
        sys.exit(f"locust (extra bench) failed: {done.stderr}")
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


def alone(model: Path, images: Path, seconds: float) -> None:
    """Print images/s and CPU time of `Model.predict`, and of the engine for batches, without a server."""
    loaded = served.load(served.in_folder(model))
    files = [path.read_bytes() for path in sorted(images.rglob("*.jpg"))]
    groups = list(grouped(files, loaded.batch_size))

    def prepare(group: list[bytes]) -> tuple[None, list[Prepared]]:
        return None, [loaded.prepare("", data) for data in group]

    def in_batches() -> None:
        deque(loaded.extractor_of_batches.features(groups, prepare), maxlen=0)

    for what, predict in (("Model.predict", partial(loaded.model.predict, files)), ("the same in batches", in_batches)):
        begin, cpu, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() < begin + seconds:
            predict()
            done += len(files)
        rate, each = done / (time.perf_counter() - begin), 1000 * (time.process_time() - cpu) / done
        print(f"{what}: {rate:.1f} images/s, {each:.1f} ms of CPU time each", flush=True)


def measure(what: str, process: psutil.Process, run: Callable[[], Load], seconds: int) -> Load:
    """Run a load, and print a line of the table for each status."""
    cpu = sum(process.cpu_times()[:2])
    found = run()
    spent = 1000 * (sum(process.cpu_times()[:2]) - cpu) / (found["200"][0] * seconds)
    for status, (rate, median, most) in sorted(found.items()):
        memory = f"{process.memory_info().rss / MIB:.0f} | {spent:.1f}" if status == "200" else " | "
        print(f"| {what} | {status} | {rate:.1f} | {median:.0f} | {most:.0f} | {memory} |", flush=True)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("images", type=Path, help="folder of JPEGs (*.jpg), at any depth")
    parser.add_argument("--seconds", type=int, default=20, help="of each load (default: 20)")
    asked = parser.parse_args()
    print(f"{cores()} cores, load average before: {os.getloadavg()[0]:.1f}")
    alone(asked.model, asked.images, asked.seconds / 2)
    print("\n| load | status | requests/s | p50, ms | p99, ms | memory, MiB | CPU, ms per image |")
    print("|---|---|--:|--:|--:|--:|--:|")
    with serving(asked.model) as (address, process):

        def run(clients: int, rate: float = 0, seconds: int = asked.seconds) -> Load:
            return load(address, asked.images, clients, rate, seconds)

        run(CLIENTS, seconds=3)  # nothing is measured before all is loaded
        full = measure(f"{CLIENTS} clients, all they can", process, partial(run, CLIENTS), asked.seconds)
        capacity = full["200"][0]
        for what, share, clients in (("half", 0.5, CLIENTS), ("4 times", 4, MANY), ("half, afterwards", 0.5, CLIENTS)):
            asks = partial(run, clients, share * capacity)
            measure(f"{what}: {share * capacity:.0f} requests/s", process, asks, asked.seconds)


if __name__ == "__main__":
    main()
