"""Feature extraction as a plain script: ImageFolder, Pillow transforms, a DataLoader, fp32, eager mode.

    python -m benchmarks.loop FOLDER BACKBONE [SECONDS]

BACKBONE is a folder that the backbone stage wrote. Prints images/s, start-up excluded.
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
    """Compute features for the given time."""
    backbone = backbones.load(Path(backbone_dir))
    spec = backbone.transform
    transform = v2.Compose(
        [
            v2.Resize(spec.resize, InterpolationMode(spec.interpolation)), v2.CenterCrop(spec.size),
            v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std),
        ]
    )  # fmt: skip
    batches = iter(DataLoader(ImageFolder(folder, transform), batch_size=32, num_workers=2))
    model = backbone.network.eval()
    with torch.no_grad():
        model(next(batches)[0])  # the workers have started
        seen, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < float(seconds) and (batch := next(batches, None)):
            seen += len(model(batch[0]))
        print(f"{seen / (time.perf_counter() - begin):.1f} images/s")


if __name__ == "__main__":
    main(*sys.argv[1:])
