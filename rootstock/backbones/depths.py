"""Where in a network features are taken, and how a map becomes a vector.

A network that is cut at a layer stops there: nothing above it is computed. Forward hooks do that for every family, also
for those that torch.fx cannot trace; an output is taken before a later layer can change it in place.
"""

from difflib import get_close_matches
from typing import Literal

import torch
from torch import Tensor, nn

from rootstock.config.architectures import FEATURE_LEVELS, PENULTIMATE, TIMM, architecture
from rootstock.system.errors import ParamsError

Pooling = Literal["avg", "max", "avgmax", "gem", "cls"]
GEM_POWER = 3.0  # where Radenović, Tolias, Chum 2018 (Fine-tuning CNN Image Retrieval) begin


class Reached(Exception):  # noqa: N818  it ends a forward pass, and nothing is wrong
    """The layer has given its output."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


class Cut(nn.Module):
    """A network up to a layer, whose output is pooled: images (n, 3, size, size) to features (n, width).

    Args:
        network: whole.
        layer: name of one of its modules; where it is used more than once, its first use counts.
        pooling: how its output becomes a vector.
        class_tokens: of a transformer, how many stand before those of the patches.
        channels_last: whether its maps are (n, h, w, c).
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
        except Reached as reached:
            return self._vector(reached.output)
        raise ParamsError(
            f"params.yaml: extract.layer is {self.layer!r}, which no image passes; expected another layer"
        )

    def _vector(self, output: Tensor) -> Tensor:
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
                "expected a layer that gives maps, tokens or vectors"
            )
        return pool(positions, self.pooling)


def _stop(_: nn.Module, __: object, output: object) -> None:
    raise Reached(first_of(output))


def first_of(output: object) -> Tensor:
    """Give what a layer gives, the first of it if it gives several (branches, attention weights).

    Raises:
        ParamsError: it gives no tensor.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise ParamsError(
            f"params.yaml: extract.layer names a layer that gives a {type(output).__name__}; expected one that gives "
            "maps, tokens or vectors"
        )
    return first


def pool(positions: Tensor, pooling: Pooling) -> Tensor:
    """Pool what a layer says of each place of an image, (n, c, places), to (n, c); avgmax gives (n, 2 c)."""
    match pooling:
        case "avg":
            return positions.mean(2)
        case "max":
            return positions.amax(2)
        case "avgmax":
            return torch.cat([positions.mean(2), positions.amax(2)], 1)
        case "gem":  # generalised mean: between average and maximum; of what is negative, nothing
            return positions.clamp(min=1e-6).pow(GEM_POWER).mean(2).pow(1 / GEM_POWER)
        case "cls":
            raise ParamsError(
                "params.yaml: extract.pooling is 'cls', and there is no class token here; "
                "expected avg, max, avgmax or gem"
            )


def cut(network: nn.Module, name: str, layer: str, pooling: Pooling) -> nn.Module:
    """Cut a network at a depth or a layer; the penultimate one is the network as it is, with its own pooling.

    Args:
        network: without its classification layer.
        name: of the architecture.
        layer: low, mid, high, penultimate, or the name of a module.
        pooling: of maps and tokens.

    Raises:
        ParamsError: there is no such layer, naming the nearest.
    """
    if layer == PENULTIMATE:
        return network
    tokens = 1 if hasattr(network, "class_token") else getattr(network, "num_prefix_tokens", 0)
    if pooling == "cls" and not tokens:
        pool(torch.empty(1, 1, 1), pooling)
    return Cut(network, layer_of(network, name, layer), pooling, tokens, has_channels_last(network))


def has_channels_last(network: nn.Module) -> bool:
    """Whether a network's maps are (n, h, w, c) inside, as Swin transformers' are; a square map does not show it."""
    return "Swin" in type(network).__name__ or str(getattr(network, "output_fmt", "")).endswith("NHWC")


def layer_of(network: nn.Module, name: str, layer: str) -> str:
    """Name the module that a depth means in an architecture; a module's own name stays.

    Raises:
        ParamsError: there is no such layer, naming the nearest.
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
    """Name the modules of the three depths; none where an architecture of timm's does not say where its stages end."""
    depths = architecture(name).depths
    if depths is None and name.startswith(TIMM):
        depths = _of_timm(network)
    return dict(zip(FEATURE_LEVELS, depths, strict=True)) if depths else {}


def _of_timm(network: nn.Module) -> tuple[str, str, str] | None:
    """Read off timm's `feature_info` where maps have shrunk to a quarter, to a sixteenth, and the last one.

    Where nothing shrinks (vision transformers): after a quarter and three quarters of the blocks.
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


def whole_of(network: nn.Module) -> nn.Module:
    """Give the network that was cut; one that was not is whole itself."""
    return network.network if isinstance(network, Cut) else network


def is_below(network: nn.Module, module: str) -> bool:
    """Whether a module of the whole network, by its name, comes no later than the layer at which it was cut."""
    if not isinstance(network, Cut):
        return True
    order = [name for name, _ in network.network.named_modules()]
    last = max(at for at, name in enumerate(order) if f"{name}.".startswith(f"{network.layer}."))
    return order.index(module) <= last


def width_of(network: nn.Module, size: int) -> int:
    """Find the width of a network's features by having it see an image, on the device that it is on."""
    parameter = next(network.parameters())
    image = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    training = network.training
    with torch.inference_mode():
        width = network.eval()(image).shape[1]
    network.train(training)
    return int(width)


def parameters_below(features: Tensor) -> list[nn.Parameter]:
    """List the parameters that features depend on, by the graph that autograd has drawn."""
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
