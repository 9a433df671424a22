"""A backbone by name: the network without its classification layer, its transform, its weights, and what it is.

Adding one: a name in rootstock/architectures.py, and, unless torchvision builds it, its lines in `build`,
`transform_of` and rootstock/weights.py.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rootstock import params, progress, weights
from rootstock.architectures import EFFICIENTNET_LITE0
from rootstock.errors import ParamsError, WeightsError
from rootstock.files import replacing_folder, sha256, write
from rootstock.pixels import Transform

WEIGHTS, DESCRIPTION = "weights.safetensors", "backbone.json"
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Backbone:
    """A network that turns images (n, 3, size, size) into features (n, width), and its description."""

    network: nn.Module
    transform: Transform
    width: int
    digest: str
    description: dict[str, Any]


def prepare(settings: params.Backbone, seed: int, folder: Path) -> dict[str, Any]:
    """Fetch the weights of a backbone and write them with their description.

    Args:
        settings: the section `backbone` of params.yaml.
        seed: of random weights.
        folder: replaced by one with `weights.safetensors` and `backbone.json`.

    Returns:
        The description.

    Raises:
        WeightsError: the weights cannot be had or do not fit.
        ParamsError: the architecture does not take images of that size.
    """
    transform = transform_of(settings)
    torch.manual_seed(seed)
    with progress.bar("backbone", 3, "steps") as advance:
        network = build(settings.name, transform.size)
        advance(1)
        found = weights.find(settings, seed)
        if found.state is not None:
            weights.fit(network, found.state, found.origin)
        advance(1)
        width, macs = _measure(network, transform.size, settings.name)
        advance(1)
    with replacing_folder(folder) as temporary:
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, temporary / WEIGHTS)
        description = {
            "name": settings.name,
            "digest": sha256(temporary / WEIGHTS),
            "origin": found.origin,
            "licence": found.licence,
            "transform": transform.as_dict(),
            "feature_width": width,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "macs": macs,
            "blocks": [name for name, _ in blocks(network)],
        }
        write(temporary / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    return description


def load(folder: Path) -> Backbone:
    """Build the network that `prepare` described and give it its weights, in evaluation mode."""
    description = describe(folder)
    transform = Transform.from_dict(description["transform"])
    network = build(description["name"], transform.size)
    weights.assign(network, load_file(folder / WEIGHTS))
    network.eval()
    return Backbone(network, transform, description["feature_width"], description["digest"], description)


def describe(folder: Path) -> dict[str, Any]:
    """Read the description alone: quick, and without torch's weights.

    Raises:
        WeightsError: there is none.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        raise WeightsError(f"{path} is not there: run backbone first, or `dvc pull` it")
    described: dict[str, Any] = json.loads(path.read_bytes())
    return described


def build(name: str, image_size: int) -> nn.Module:
    """Build an architecture with random weights and without its classification layer.

    Its last layer that maps features to classes becomes the identity, so that calling the network gives the
    features (n, width) that layer would have seen.
    """
    network = _build_whole(name, image_size)
    parent, _, leaf = classification_layer(network).rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.Identity())
    return network


def _build_whole(name: str, image_size: int) -> nn.Module:
    if name == EFFICIENTNET_LITE0:
        import timm  # takes seconds to import

        return timm.create_model("tf_efficientnet_lite0")  # type: ignore[no-any-return]
    from torchvision.models import get_model

    _check_known(name)
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # The auxiliary classifiers only helped the original training; their pretrained weights expect Google's
        # normalisation, which transform_input makes of torchvision's.
        options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    elif name.startswith("vit_"):
        options = {"image_size": image_size}
    elif name.startswith("maxvit"):
        options = {"input_size": (image_size, image_size)}
    try:
        return get_model(name, weights=None, **options)  # type: ignore[no-any-return]
    except (ValueError, AssertionError) as error:
        raise _wrong_size(image_size, name, error) from None


def _check_known(name: str) -> None:
    """Names come and go with torchvision's versions: the list in architectures.py is of one, installed is another."""
    import torchvision

    if name not in torchvision.models.list_models():
        raise ParamsError(
            f"params.yaml: backbone.name is {name!r}, which torchvision {torchvision.__version__} does not have; "
            "expected a name that it has. Upgrade torchvision for this one."
        )


def _wrong_size(size: int, name: str, error: Exception) -> ParamsError:
    why = str(error).splitlines()[0].rstrip(".")
    return ParamsError(
        f"params.yaml: backbone.image_size is {size}, which {name} does not take ({why}); expected a size that it "
        "takes. Leave it empty for its own."
    )


def classification_layer(network: nn.Module) -> str:
    """Name the layer that maps features to classes: the last linear one, or SqueezeNet's last convolution."""
    kind = nn.Conv2d if type(network).__name__ == "SqueezeNet" else nn.Linear
    layers: list[str] = [name for name, module in network.named_modules() if isinstance(module, kind)]
    return layers[-1]


def transform_of(settings: params.Backbone) -> Transform:
    """Say what the backbone expects to see: its own transform, or the size and crop of the parameters."""
    if settings.name == EFFICIENTNET_LITE0:  # timm's default_cfg of tf_efficientnet_lite0
        own = Transform(224, 256, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    else:
        from torchvision.models import get_model_weights

        _check_known(settings.name)
        preset = get_model_weights(settings.name).DEFAULT.transforms()
        own = Transform(
            preset.crop_size[0],
            preset.resize_size[0],
            preset.interpolation.value,
            tuple(preset.mean),
            tuple(preset.std),
        )
    size = settings.image_size or own.size
    fraction = settings.crop_fraction or own.size / own.resize
    return Transform(size, max(size, round(size / fraction)), own.interpolation, own.mean, own.std)


def _measure(network: nn.Module, size: int, name: str) -> tuple[int, int]:
    """Count feature width and multiply-accumulates of one image, by running one."""
    network.eval()
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            features: Tensor = network(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _wrong_size(size, name, error) from None
    if features.ndim != 2:
        raise WeightsError(f"{name}: gives features of shape {tuple(features.shape)}; expected one vector an image")
    if not features.isfinite().all():
        raise WeightsError(f"backbone.weights: with these, {name} gives features that are not finite; they are damaged")
    return features.shape[1], counter.get_total_flops() // 2


def blocks(network: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """List what the architecture stacks, from the image to the features: the units of unfreezing.

    A block is what stands in the network's sequences: a residual block, an inverted residual, an inception module, a
    transformer block; in AlexNet and VGG, which are written out layer by layer, one layer. A norm belongs to what it
    follows, and plain layers behind the last composite block (a final convolution, a norm) belong to that.
    """
    found: list[tuple[str, list[nn.Module]]] = []
    for name, module in _stacked(network, ""):
        if not any(True for _ in module.parameters()):
            continue
        if found and isinstance(module, NORMS):
            found[-1][1].append(module)
        else:
            found.append((name, [module]))
    composite = [index for index, (_, modules) in enumerate(found) if _is_composite(modules[0])]
    if composite:
        last = composite[-1]
        found[last][1].extend(module for _, modules in found[last + 1 :] for module in modules)
        del found[last + 1 :]
    return found


def _is_composite(module: nn.Module) -> bool:
    """Whether a module holds more than one layer; a convolution with its norm and activation is one."""
    own = [part for part in module.modules() if not isinstance(part, NORMS) and list(part.parameters(recurse=False))]
    return len(own) > 1


def _stacked(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    """Open sequences, and top modules that hold nothing but sequences and plain layers, down to what they stack."""
    parts = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        inner = list(child.children())
        sequences = [part for part in inner if type(part) in (nn.Sequential, nn.ModuleList)]
        only_holds = sequences and all(part in sequences or not list(part.children()) for part in inner)
        if type(child) in (nn.Sequential, nn.ModuleList) or (not prefix and only_holds):
            parts += _stacked(child, f"{path}.")
        else:
            parts.append((path, child))
    return parts
