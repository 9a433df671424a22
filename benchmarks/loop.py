"""What a user would write to get features: torchvision's ImageFolder, Pillow's transforms, a DataLoader, fp32, eager.

    python -m benchmarks.loop FOLDER BACKBONE [SECONDS]

BACKBONE is a folder that the backbone stage wrote. Prints images a second, start-up excluded.
"""

import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from rootstock.backbones import backbones


def main(folder: str, backbone_dir: str, seconds: str = "6") -> None:
    """Compute the features of as many images as fit into the time."""
    backbone = backbones.load(Path(backbone_dir))
    expects = backbone.transform
    transform = v2.Compose(
        [
            v2.Resize(expects.resize, InterpolationMode(expects.interpolation)), v2.CenterCrop(expects.size),
            v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(expects.mean, expects.std),
        ]
    )  # fmt: skip
    batches = iter(DataLoader(ImageFolder(folder, transform), batch_size=32, num_workers=2))
    model = backbone.network.eval()
    with torch.no_grad():
        model(next(batches)[0])  # the workers are up
        seen, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < float(seconds) and (batch := next(batches, None)):
            seen += len(model(batch[0]))
        print(f"{seen / (time.perf_counter() - begin):.1f} a second")


if __name__ == "__main__":
    main(*sys.argv[1:])
