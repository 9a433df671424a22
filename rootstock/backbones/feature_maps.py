"""A network's feature maps and the filters of its first layer, as textbooks show them (Zeiler & Fergus 2014)."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rootstock.backbones.blocks import blocks
from rootstock.backbones.depths import Cut, first_tensor, has_channels_last, named_depths, prefix_tokens, uncut
from rootstock.system.errors import ParamsError

NORMS_OF_ATTENTION = ("norm1", "ln_1")  # of a transformer block, in timm and in torchvision
RGB = 3


@dataclass(frozen=True)
class Layout:
    """How the layers of a network lay out positions: (n, c, h, w), (n, h, w, c), or tokens (n, t, c).

    The first `prefix_tokens` tokens are of no position.
    """

    prefix_tokens: int
    channels_last: bool

    @classmethod
    def of(cls, network: nn.Module) -> "Layout":
        """Return the layout of a network, cut or not."""
        whole = uncut(network)
        return cls(prefix_tokens(whole), has_channels_last(whole))

    def maps(self, output: Tensor) -> Tensor | None:
        """Return a layer's output as feature maps (n, c, h, w); None if it has no grid of positions."""
        if output.ndim == 4:
            return output.permute(0, 3, 1, 2) if self.channels_last else output
        if output.ndim != 3:
            return None
        patches = output[:, self.prefix_tokens :]
        side = math.isqrt(patches.shape[1])
        if side * side != patches.shape[1]:
            return None
        grid: Tensor = patches.transpose(1, 2).unflatten(2, (side, side))
        return grid

    def restored(self, maps: Tensor, output: Tensor) -> Tensor:
        """Return feature maps (n, c, h, w) in the layout of the output that they are of."""
        if output.ndim == 4:
            return maps.permute(0, 2, 3, 1) if self.channels_last else maps
        return torch.cat([output[:, : self.prefix_tokens], maps.flatten(2).transpose(1, 2)], 1)


def layers_to_explain(network: nn.Module, name: str) -> list[str]:
    """List the layers whose maps may explain a network's features, the best first: the last ones, then earlier ones.

    A vision transformer that classifies its class token does not use what its last block makes of the other tokens.
    What they contribute goes through that block's attention, so the norm before it comes next.

    Args:
        network: a backbone, cut or not.
        name: the architecture.
    """
    whole = uncut(network)
    levels = [*reversed(named_depths(whole, name).values())]
    stacked = [block for block, _ in reversed(blocks(whole))]
    last = network.layer if isinstance(network, Cut) else next(iter(levels), None)
    order = [*([last] if last else []), *stacked[:1], *levels[1:], *stacked[1:]]
    modules = dict(whole.named_modules())
    found = (f"{layer}{norm}" for layer in order for norm in ("", *(f".{norm}" for norm in NORMS_OF_ATTENTION)))
    return [layer for layer in dict.fromkeys(found) if layer in modules]


def feature_maps(network: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Compute what layers make of images.

    Args:
        network: a backbone in evaluation mode; layers above the one where it is cut are not reached.
        layers: names of modules of the whole network.
        images: normalised (n, 3, size, size) float32.

    Returns:
        Feature maps (n, c, h, w) float32 by layer; layers that are not reached or have no positions are left out.
    """
    whole, layout = uncut(network), Layout.of(network)
    found: dict[str, Tensor] = {}

    def keep(layer: str, _: nn.Module, __: object, output: object) -> None:
        maps = None
        with suppress(ParamsError):  # the output is no tensor
            maps = layout.maps(first_tensor(output))
        if maps is not None and layer not in found:
            found[layer] = maps.float().clone()  # a later layer may work in place

    hooks = [whole.get_submodule(layer).register_forward_hook(partial(keep, layer), prepend=True) for layer in layers]
    try:
        with torch.inference_mode():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def first_filters(network: nn.Module) -> Tensor | None:
    """Return the filters (c, 3, h, w) float32 of the first layer; None if that is no convolution of three channels."""
    for module in uncut(network).modules():
        if isinstance(module, nn.Conv2d):
            is_rgb = module.in_channels == RGB and module.groups == 1 and min(module.kernel_size) > 1
            return module.weight.detach().float() if is_rgb else None
    return None
