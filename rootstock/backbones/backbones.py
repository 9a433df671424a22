"""Prepare and load a backbone: the network without its classification layer, its weights and its description.

To add one: an entry in rootstock/config/architectures.py (docs/backbones.md).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rootstock.backbones import depths, state_dicts, weights
from rootstock.backbones.blocks import blocks
from rootstock.backbones.depths import Pooling
from rootstock.backbones.networks import build, check_in_torchvision, image_size_error, timm_config
from rootstock.backbones.papers import PAPERS
from rootstock.backbones.sizes import measure
from rootstock.config import params
from rootstock.config.architectures import PENULTIMATE, TIMM, Transform, architecture
from rootstock.system import packages, progress
from rootstock.system.errors import WeightsError
from rootstock.system.files import read_json, reading, replacing_folder, sha256, verify, write

WEIGHTS, DESCRIPTION = "weights.safetensors", "backbone.json"


@dataclass(frozen=True)
class Backbone:
    """A network that turns images (n, 3, size, size) into features (n, width), and its description."""

    network: nn.Module
    transform: Transform
    width: int
    digest: str
    description: dict[str, Any]

    @property
    def is_pretrained(self) -> bool:
        """Whether the weights come from training: random ones have no batch-norm statistics worth keeping."""
        return not str(self.description["origin"]).startswith("random")


def prepare(settings: params.Backbone, seed: int, folder: Path) -> dict[str, Any]:
    """Fetch the weights of a backbone and write them with their description.

    Args:
        settings: the section `backbone` of params.yaml.
        seed: for random weights.
        folder: replaced by one with `weights.safetensors` and `backbone.json`.

    Returns:
        The description.

    Raises:
        WeightsError: the weights cannot be loaded, or do not fit the architecture.
        ParamsError: the architecture does not exist, or does not accept that image size.
    """
    transform = transform_of(settings)
    torch.manual_seed(seed)
    with progress.bar("backbone", 3, "steps") as advance:
        found = weights.find(settings, seed, transform.size)
        advance(1)
        if found.state is None:
            network = build(settings.name, transform.size, settings.variant)
        else:
            network = state_dicts.build_with_state(
                settings.name, transform.size, settings.variant, found.state, found.origin
            )
            if name := state_dicts.first_non_finite(network):
                raise WeightsError(
                    f"backbone.weights: {found.origin}: {name} holds NaN or infinite values, so its features would "
                    "not be finite; use another file"
                )
        advance(1)
        measured = measure(network, settings, transform.size)
        advance(1)
    with replacing_folder(folder) as temporary:
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, temporary / WEIGHTS)
        description = {
            "name": settings.name,
            **({"variant": settings.variant} if settings.variant else {}),
            "digest": sha256(temporary / WEIGHTS),
            "origin": found.origin,
            "licence": found.licence,
            "transform": transform.as_dict(),
            "libraries": packages.installed_versions("torch", "torchvision", "timm"),
            **measured,
            **({"paper": PAPERS[settings.name].as_dict()} if settings.name in PAPERS else {}),
            "blocks": [name for name, _ in blocks(network)],
        }
        write(temporary / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    return description


def load(folder: Path, layer: str = PENULTIMATE, pooling: Pooling = "avg") -> Backbone:
    """Build the network that `prepare` described and load its weights, in evaluation mode.

    The weights are memory-mapped from the file: read on first use, with no second copy.

    Args:
        folder: what `prepare` wrote.
        layer: where features are taken: low, mid, high, penultimate, or the name of a module.
        pooling: for a layer whose output is feature maps or tokens.
    """
    description = describe(folder)
    with reading(folder / DESCRIPTION):
        transform, own_width = Transform.from_dict(description["transform"]), description["feature_width"]
        name, digest, variant = description["name"], description["digest"], description.get("variant")
    verify(folder / WEIGHTS, digest)
    with reading(folder / WEIGHTS):
        full = state_dicts.build_with_state(
            name, transform.size, variant, load_file(folder / WEIGHTS), str(folder)
        ).eval()
    network = depths.cut(full, name, layer, pooling).eval()
    width = own_width if network is full else depths.feature_width(network, transform.size)
    return Backbone(network, transform, width, digest, description)


def describe(folder: Path) -> dict[str, Any]:
    """Read only the description; fast, as no weights are loaded.

    Raises:
        WeightsError: there is no description.
        DamagedError: the file differs from what was written.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        raise WeightsError(f"{path} does not exist: run backbone first, or `dvc pull` it")
    described = read_json(path)
    with reading(path):
        for name in ("name", "digest", "transform", "feature_width"):
            described[name]
    return described


def transform_of(settings: params.Backbone) -> Transform:
    """Return the input transform: the backbone's own, with the parameters' size and crop if they are set.

    Raises:
        ParamsError: the backbone only accepts one size, and this is another.
    """
    described = architecture(settings.name, settings.variant)
    if described.transform:
        own = described.transform
    elif settings.name.startswith(TIMM):
        own = _timm_transform(settings.name)
    else:
        own = _torchvision_transform(settings.name)
    size = settings.image_size or own.size
    if size != own.size and not described.takes_any_size:
        raise image_size_error(size, settings.name, f"it only accepts {own.size} pixels")
    fraction = settings.crop_fraction or own.size / own.resize
    return Transform(size, max(size, round(size / fraction)), own.interpolation, own.mean, own.std)


def _torchvision_transform(name: str) -> Transform:
    from torchvision.models import get_model_weights

    check_in_torchvision(name)
    preset = get_model_weights(name).DEFAULT.transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    return Transform(preset.crop_size[0], preset.resize_size[0], preset.interpolation.value, mean, std)


def _timm_transform(name: str) -> Transform:
    config = timm_config(name)
    size = config.input_size[1]
    return Transform(size, int(size / config.crop_pct), config.interpolation, tuple(config.mean), tuple(config.std))
