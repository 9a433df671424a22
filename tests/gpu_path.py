"""The GPU's code path, on the CPU."""

from pathlib import Path

import torch
from torch import Tensor, nn

from rootstock.backbones.backbones import Backbone
from rootstock.config.params import Extract
from rootstock.features import computing, gpu
from rootstock.features.computing import File
from rootstock.features.engines import Engine
from rootstock.images.loader import Normalise

BATCH = 7  # shards hold about ten images
CPU = torch.device("cpu")
EAGER = Extract(engine="eager")


def engine_of(backbone: Backbone, batch_size: int = BATCH) -> Engine:
    network = nn.Sequential(Normalise(backbone.transform), backbone.network).eval()
    there = gpu.GpuNetwork(network, "f32", CPU, batch_size)
    return Engine("eager", there.forward, batch_size, there.stream)


def computed(files: list[File], engine: Engine, backbone: Backbone, settings: Extract, images: Path) -> None:
    computing.compute(files, engine, backbone, settings, images, lambda n, **counts: None, threads=4)


class Seen(nn.Module):
    """A network that keeps what it is given, and calls a function first."""

    def __init__(self, first=lambda: None) -> None:
        super().__init__()
        self.first, self.seen = first, []

    def forward(self, images: Tensor) -> Tensor:
        self.first()
        self.seen.append(images)
        return images.flatten(1).float().sum(1, keepdim=True)
