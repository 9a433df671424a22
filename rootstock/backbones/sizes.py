"""Measure a network's size: parameters, multiply-accumulates and feature width, in total and per feature level."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rootstock.backbones import depths
from rootstock.backbones.networks import build, image_size_error
from rootstock.config import params
from rootstock.config.architectures import FEATURE_LEVELS
from rootstock.system.errors import WeightsError

IMAGENET_CLASSES = 1000  # papers and torchvision include this classification layer


def measure(network: nn.Module, settings: params.Backbone, size: int) -> dict[str, Any]:
    """Measure feature width, parameters and multiply-accumulates per image, in total and per feature level."""
    name = settings.name
    _check_finite(network.eval(), size, name)
    try:
        with torch.device("meta"):
            shapes = build(name, size, settings.variant).eval()
        return _count(shapes, name, torch.zeros(1, 3, size, size, device="meta"))
    except (RuntimeError, NotImplementedError):  # some operations have no meta kernel
        return _count(network, name, torch.zeros(1, 3, size, size))


def _check_finite(network: nn.Module, size: int, name: str) -> None:
    try:
        with torch.inference_mode():
            features: Tensor = network(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise image_size_error(size, name, error) from None
    if features.ndim != 2:
        raise WeightsError(f"{name}: returns features of shape {tuple(features.shape)}; expected one vector per image")
    if not features.isfinite().all():
        raise WeightsError(f"backbone.weights: {name} returns features that are not finite; the weights are damaged")


def cost(network: nn.Module, size: int) -> dict[str, int]:
    """Count the parameters and multiply-accumulates of a forward pass of one image, up to the cut."""
    parameter = next(network.parameters())
    with FlopCounterMode(display=False) as counter:
        features = network(torch.zeros(1, 3, size, size, device=parameter.device))
    below = depths.parameters_below(features)
    return {"parameters": sum(parameter.numel() for parameter in below), "macs": counter.get_total_flops() // 2}


def _count(network: nn.Module, name: str, image: Tensor) -> dict[str, Any]:
    """Run one image with autograd on, whose graph tells what each output depends on."""
    reached: dict[str, dict[str, Any]] = {}
    named = depths.named_depths(network, name)

    def record(depth: str, layer: str, output: Tensor) -> None:
        if depth not in reached:
            channels = 1 if output.ndim == 4 and not depths.has_channels_last(network) else -1
            reached[depth] = {
                "layer": layer,
                "width": output.shape[channels],
                "parameters": sum(parameter.numel() for parameter in depths.parameters_below(output)),
                "macs": counter.get_total_flops() // 2,
            }

    hooks = [
        network.get_submodule(layer).register_forward_hook(
            lambda _, __, output, depth=depth, layer=layer: record(depth, layer, depths.first_tensor(output))
        )
        for depth, layer in named.items()
    ]
    try:
        with FlopCounterMode(display=False) as counter:
            features = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    width = features.shape[1]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {
        "feature_width": width,
        "parameters": parameters,
        "parameters_with_imagenet_classes": parameters + (width + 1) * IMAGENET_CLASSES,
        "macs": counter.get_total_flops() // 2,
        "depths": {depth: reached[depth] for depth in FEATURE_LEVELS if depth in reached},
    }
