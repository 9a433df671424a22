"""Choose the layer that features are taken from, and pool its feature maps to a vector.

A network that is cut at a layer stops there: nothing above it is computed. A forward hook does this for every family,
including those that torch.fx cannot trace, and takes the output before a later layer can change it in place.
"""

from difflib import get_close_matches
from typing import Literal

import torch
from torch import Tensor, nn

from rootstock.config.architectures import FEATURE_LEVELS, PENULTIMATE, TIMM, architecture
from rootstock.system.errors import ParamsError

Pooling = Literal["avg", "max", "avgmax", "gem", "cls"]
GEM_POWER = 3.0  # the initial value in Radenović, Tolias, Chum 2018 (Fine-tuning CNN Image Retrieval)


class LayerReached(Exception):  # noqa: N818  ends a forward pass; not an error
    """Raised by the hook once the layer has produced its output."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


class Cut(nn.Module):
    """A network up to a layer, with pooled output: images (n, 3, size, size) to features (n, width).

    Args:
        network: the full network.
        layer: name of one of its modules; if it is called more than once, the first call counts.
        pooling: how its output becomes a vector.
        class_tokens: number of a transformer's tokens that precede the patch tokens.
        channels_last: whether its feature maps are (n, h, w, c).
    """

    def __init__(
        self, network: nn.Module, layer: str, pooling: Pooling, class_tokens: int, channels_last: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.layer, self.pooling, self.class_tokens, self.channels_last = layer, pooling, class_tokens, channels_last
        network.get_submodule(layer).register_forward_hook(_stop)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features of a batch."""
        try:
            self.network(images)
        except LayerReached as reached:
            return self.pooled(reached.output)
        raise ParamsError(
            f"params.yaml: extract.layer is {self.layer!r}, which the forward pass never calls; expected another layer"
        )

    def pooled(self, output: Tensor) -> Tensor:
        """Pool the layer's output to features (n, width)."""
        if output.ndim == 2:
            return output
        if output.ndim == 3:  # tokens (n, t, c)
            if self.pooling == "cls":
                return output[:, 0]
            positions = output[:, self.class_tokens :].transpose(1, 2)
        elif output.ndim == 4:
            positions = (output.permute(0, 3, 1, 2) if self.channels_last else output).flatten(2)
        else:
            raise ParamsError(
                f"params.yaml: extract.layer is {self.layer!r}, whose output has the shape {tuple(output.shape)}; "
                "expected a layer that outputs feature maps, tokens or vectors"
            )
        return pool(positions, self.pooling)


def _stop(_: nn.Module, __: object, output: object) -> None:
    raise LayerReached(first_tensor(output))


def first_tensor(output: object) -> Tensor:
    """Return a layer's output tensor, the first if there are several (branches, attention weights).

    Raises:
        ParamsError: the output is not a tensor.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise ParamsError(
            f"params.yaml: extract.layer names a layer that outputs a {type(output).__name__}; expected "
            "one that outputs feature maps, tokens or vectors"
        )
    return first


def pool(positions: Tensor, pooling: Pooling) -> Tensor:
    """Pool a layer's output over positions: (n, c, positions) to (n, c), or (n, 2 c) for avgmax."""
    match pooling:
        case "avg":
            return positions.mean(2)
        case "max":
            return positions.amax(2)
        case "avgmax":
            return torch.cat([positions.mean(2), positions.amax(2)], 1)
        case "gem":  # generalised mean, between average and maximum; negative values count as zero
            return positions.clamp(min=1e-6).pow(GEM_POWER).mean(2).pow(1 / GEM_POWER)
        case "cls":
            raise ParamsError(
                "params.yaml: extract.pooling is 'cls', but this layer has no class token; "
                "expected avg, max, avgmax or gem"
            )


def cut(network: nn.Module, name: str, layer: str, pooling: Pooling) -> nn.Module:
    """Cut a network at a feature level or a layer; penultimate returns it unchanged, with its own pooling.

    Args:
        network: without its classification layer.
        name: the architecture.
        layer: low, mid, high, penultimate, or the name of a module.
        pooling: for feature maps and tokens.

    Raises:
        ParamsError: no such layer; the message suggests the nearest names.
    """
    if layer == PENULTIMATE:
        return network
    tokens = prefix_tokens(network)
    if pooling == "cls" and not tokens:
        pool(torch.empty(1, 1, 1), pooling)
    return Cut(network, resolve_layer(network, name, layer), pooling, tokens, has_channels_last(network))


def prefix_tokens(network: nn.Module) -> int:
    """Return how many of a transformer's tokens (class token, registers) precede those of the patches; 0 for a CNN."""
    return 1 if hasattr(network, "class_token") else int(getattr(network, "num_prefix_tokens", 0))


def has_channels_last(network: nn.Module) -> bool:
    """Whether a network's feature maps are (n, h, w, c), as in Swin transformers; shapes alone do not tell."""
    return "Swin" in type(network).__name__ or str(getattr(network, "output_fmt", "")).endswith("NHWC")


def resolve_layer(network: nn.Module, name: str, layer: str) -> str:
    """Return the module name for a feature level of an architecture; a module name is returned unchanged.

    Raises:
        ParamsError: no such layer; the message suggests the nearest names.
    """
    named = named_depths(network, name)
    found = named.get(layer, layer)
    modules = dict(network.named_modules())
    if found and found in modules:
        return found
    near = get_close_matches(layer, [*named, PENULTIMATE, *modules], n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    depths = f"{', '.join(named)}, {PENULTIMATE}" if named else PENULTIMATE
    raise ParamsError(
        f"params.yaml: extract.layer is {layer!r}; expected {depths}, or the name of one of {name}'s modules.{hint}"
    )


def named_depths(network: nn.Module, name: str) -> dict[str, str]:
    """Map low, mid and high to module names; empty if a timm architecture does not describe its stages."""
    depths = architecture(name).depths
    if depths is None and name.startswith(TIMM):
        depths = _timm_depths(network)
    return dict(zip(FEATURE_LEVELS, depths, strict=True)) if depths else {}


def _timm_depths(network: nn.Module) -> tuple[str, str, str] | None:
    """Find the modules at stride 4, at stride 16 and at the end, from timm's `feature_info`.

    If the stride is constant (vision transformers): after a quarter and three quarters of the blocks.
    """
    modules = dict(network.named_modules())
    infos = [(info["module"], info["reduction"]) for info in getattr(network, "feature_info", [])]
    infos = [(module, reduction) for module, reduction in infos if module in modules]
    if not infos:
        return None
    last = infos[-1][0]
    if len({reduction for _, reduction in infos}) == 1:
        quarter = len(infos) // 4
        return infos[max(quarter - 1, 0)][0], infos[max(3 * quarter - 1, 0)][0], last
    low = [module for module, reduction in infos if reduction <= 4]
    mid = [module for module, reduction in infos if reduction <= 16]
    return (low or [infos[0][0]])[-1], (mid or [infos[-2][0]])[-1], last


def uncut(network: nn.Module) -> nn.Module:
    """Return the full network behind a cut one, or the network itself."""
    return network.network if isinstance(network, Cut) else network


def is_below(network: nn.Module, module: str) -> bool:
    """Whether a module of the full network comes no later than the layer where it was cut."""
    if not isinstance(network, Cut):
        return True
    order = [name for name, _ in network.network.named_modules()]
    last = max(at for at, name in enumerate(order) if f"{name}.".startswith(f"{network.layer}."))
    return order.index(module) <= last


def feature_width(network: nn.Module, size: int) -> int:
    """Return the width of a network's features, from a forward pass of one image on the network's device."""
    parameter = next(network.parameters())
    image = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    training = network.training
    with torch.inference_mode():
        width = network.eval()(image).shape[1]
    network.train(training)
    return int(width)


def parameters_below(features: Tensor) -> list[nn.Parameter]:
    """List the parameters that features depend on, from the autograd graph."""
    found: dict[int, nn.Parameter] = {}
    waiting, seen = [features.grad_fn], set()
    while waiting:
        function = waiting.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if isinstance(variable := getattr(function, "variable", None), nn.Parameter):
            found[id(variable)] = variable
        waiting += [inner for inner, _ in function.next_functions]
    return list(found.values())
