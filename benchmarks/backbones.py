"""Time to load and identify a large backbone: VGG-16 with 512 MiB of weights.

python -m benchmarks.backbones [--name vgg16] [--runs 5]    # writes random weights to a temporary folder first
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rootstock.backbones import backbones
from rootstock.config import params

MEASURE = """
import sys, time, psutil, torch
from pathlib import Path
{imports}
folder = Path(sys.argv[1])
own = psutil.Process()
before = own.memory_full_info()
start = time.perf_counter()
{act}
seconds = time.perf_counter() - start
after = own.memory_full_info()
start = time.perf_counter()
{then}
print(seconds, (after.uss - before.uss) / 2**20, (after.rss - before.rss) / 2**20, time.perf_counter() - start)
"""
IMAGE = "\nwith torch.inference_mode(): network(torch.zeros(1, 3, 224, 224))"
METHODS = {
    "Rootstock: memory-mapped": {
        "imports": "from rootstock.backbones import backbones\nfrom torchvision.models import get_model",
        "act": "network = backbones.load(folder).network",
        "then": IMAGE,
    },
    "torchvision with load_state_dict": {
        "imports": "import json\nfrom safetensors.torch import load_file\n"
        "from rootstock.backbones.networks import build",
        "act": "network = build(json.loads((folder / 'backbone.json').read_text())['name'], 224).eval()\n"
        "network.load_state_dict(load_file(folder / 'weights.safetensors'))",
        "then": IMAGE,
    },
    "description and feature key only": {
        "imports": "from rootstock.backbones import backbones\nfrom rootstock.features import feature_keys\n"
        "from rootstock.config import params",
        "act": "fields = feature_keys.cache_key_fields(backbones.describe(folder), params.Extract(), 'eager')\n"
        "feature_keys.key_of(fields)",
        "then": "",
    },
}


def measure(folder: Path, parts: dict[str, str], runs: int) -> list[float]:
    """Measure in separate processes; return medians of seconds, private MiB, resident MiB, first image in seconds."""
    code = MEASURE.format(**parts)
    outputs = [
        subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True).stdout
        for _ in range(runs)
    ]
    columns = zip(*(map(float, output.split()) for output in outputs), strict=True)
    return [statistics.median(column) for column in columns]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Time loading and identifying a backbone whose weights are present.")
    parser.add_argument("--name", default="vgg16")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "backbone"
        backbones.prepare(params.Backbone(name=arguments.name, weights="random"), 0, folder)
        size = (folder / backbones.WEIGHTS).stat().st_size / 2**20
        print(f"{arguments.name}, {size:.0f} MiB of weights, in the page cache; medians of {arguments.runs}")
        print(f"{'':<40}{'seconds':>10}{'private MiB':>13}{'resident MiB':>14}{'first image, s':>16}")
        for method, parts in METHODS.items():
            seconds, private, resident, first = measure(folder, parts, arguments.runs)
            print(f"{method:<40}{seconds:>10.4f}{private:>13.0f}{resident:>14.0f}{first:>16.3f}")


if __name__ == "__main__":
    main()
