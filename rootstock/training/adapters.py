"""`unfreeze: lora`: low-rank adapters beside frozen linear layers (LoRA, Hu et al. 2022), by PEFT.

They are there for the whole of a run, without effect until a stage trains them, and are merged into the weights at its
end: the model that is saved has the layers of the network and is no slower.
"""

import importlib.util
from typing import Any

from torch import nn

from rootstock.backbones.blocks import blocks
from rootstock.backbones.depths import feature_width, is_below, uncut
from rootstock.config import params
from rootstock.system.errors import ParamsError

LORA = "lora"  # the choice, and what the names of PEFT's parameters begin with
ALPHA = 2  # times the rank: the scale of what adapters add


class Adapters:
    """Adapters in the linear layers of a network's blocks, in place.

    Args:
        network: on its device.
        rank: of the matrices whose product is added to a layer's weights.
        size: of its images, in pixels.
        key: of params.yaml, for errors.

    Raises:
        ParamsError: PEFT is not installed, or the network has no linear layers in its blocks.
    """

    def __init__(self, network: nn.Module, rank: int, size: int, key: str) -> None:
        if importlib.util.find_spec("peft") is None:
            raise ParamsError(
                f"params.yaml: {key} is {LORA!r}, which needs PEFT: pip install -c constraints.txt -e '.[lora]'"
            )
        from peft import LoraConfig, LoraModel  # with transformers: takes seconds

        if not (targets := _called_linear_layers(network, size)):
            raise ParamsError(
                f"params.yaml: {key} is {LORA!r}, and {type(uncut(network)).__name__} has no linear layers in its "
                "blocks; expected another choice for it."
            )
        config = LoraConfig(r=rank, lora_alpha=ALPHA * rank, target_modules=targets)
        self._inside: Any = LoraModel(network, config, "default")

    def merge(self) -> None:
        """Add what the adapters have learnt to the weights, and take them out."""
        self._inside.merge_and_unload()


def wanted_by(settings: params.Finetune) -> str | None:
    """Return the key of params.yaml that asks for adapters, if any does."""
    asking = (index for index, stage in enumerate(settings.stages) if stage.unfreeze == LORA)
    return next((f"finetune.stages[{index}].unfreeze" for index in asking), None)


def parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the adapters' parameters, matrices (rank, in) and (out, rank)."""
    return [parameter for name, parameter in network.named_parameters() if is_adapter(name)]


def is_adapter(name: str) -> bool:
    """Tell by a parameter's name whether it is of an adapter."""
    return any(part.startswith(f"{LORA}_") for part in name.split("."))


def _called_linear_layers(network: nn.Module, size: int) -> list[str]:
    """Return the names of the linear layers in the blocks that are called as modules.

    Others only lend their weights to a function (in torch's MultiheadAttention): an adapter there would do nothing.
    """
    names = {module: name for name, module in network.named_modules()}
    called: list[str] = []
    below = (part for name, modules in blocks(uncut(network)) if is_below(network, name) for part in modules)
    layers = [layer for part in below for layer in part.modules() if type(layer) is nn.Linear]
    hooks = [layer.register_forward_hook(lambda layer, *_: called.append(names[layer])) for layer in layers]
    try:
        feature_width(network, size)  # a forward pass
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(called))
