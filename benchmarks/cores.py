"""How ingest, decoding and extraction grow with the number of cores: images/s for each number.

    python -m benchmarks.cores [--cores 1 2 4 8] [--images 2000]

Decoding alone is the limit of both. Extraction is that for a GPU, decoding in threads and in processes, with a network
that computes nothing, so that what is measured are the cores. Each figure of extraction is the second pass, without
start-up. More cores than this process may use are not measured.
"""

import argparse
import math
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.bench import Bench, Views, extracted, ingested, prepare, rate_of
from rootstock.config import params
from rootstock.features.engines import Engine
from rootstock.features.gpu import GpuNetwork
from rootstock.system import processes
from rootstock.system.parallel import cores, grouped, limit_to_one_core, ordered_map

NAME, BATCH = "resnet50", 256


class Nothing(nn.Module):
    """A network that computes nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        """Return zeros (n, width)."""
        return torch.zeros(len(images), self.width, device=images.device)


def measure(bench: Bench) -> dict[str, float]:
    """Return images/s with the cores that the process may use."""
    backbone = bench.backbone(NAME)
    groups = list(grouped(bench.contents(), 8))
    decoded = ordered_map(Views(backbone.transform, "full"), groups, first=limit_to_one_core)
    found = {"decoding alone": rate_of(decoded)}
    settings = params.Extract(engine="eager")
    for name, images in (("threads", math.inf), ("processes", 0)):
        network = GpuNetwork(Nothing(backbone.width), "f32", bench.device, BATCH)
        engine = Engine("eager", network.forward, BATCH, network.stream)
        with (
            patch.object(processes, "FROM_IMAGES", images),
            patch.object(processes, "FROM_CORES", 1),
            tempfile.TemporaryDirectory() as folder,
        ):
            found[f"ingest, {name}"] = ingested(bench, Path(folder))
            extracted(bench, NAME, settings, engine)
            found[f"extraction, {name}"] = extracted(bench, NAME, settings, engine)
    return found


def usable(counts: list[int]) -> list[int]:
    """Return the numbers of cores that can be measured here, and say which cannot."""
    for count in counts:
        if not 1 <= count <= cores():
            print(f"{count} cores: not measured, this process may use {cores()}", flush=True)
    return [count for count in counts if 1 <= count <= cores()]


def main() -> None:
    """Print a row for each number of cores, with the shares of decoding alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, nargs="+")
    parser.add_argument("--images", type=int, default=2000)
    given = parser.parse_args()
    everything = sorted(os.sched_getaffinity(0))
    counts = usable(given.cores or [*(count for count in (1, 2, 4, 8, 16, 32, 64) if count < cores()), cores()])
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.images, size=224, seconds=0, out=None)
        prepare(bench)
        for count in counts:
            os.sched_setaffinity(0, everything[:count])  # of threads and processes that start from here on
            processes._pool.cache_clear()
            found = measure(bench)
            alone = found["decoding alone"]
            shares = ", ".join(f"{what} {rate:,.0f} ({rate / alone:.0%})" for what, rate in found.items())
            print(f"{count} cores: {shares}", flush=True)


if __name__ == "__main__":
    main()
