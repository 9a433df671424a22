"""SqueezeNet backbones with weights from any source, and a comparison of state dicts."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rootstock.backbones import backbones
from rootstock.config.params import Backbone

NAME = "squeezenet1_1"


def prepared(source: str | Path, folder: Path) -> dict[str, Tensor]:
    """Prepare a backbone from a source, and return its weights."""
    backbones.prepare(Backbone(name=NAME, weights=str(source), image_size=32), 0, folder)
    return load_file(folder / backbones.WEIGHTS)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
