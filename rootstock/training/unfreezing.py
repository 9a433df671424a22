"""Unfreezing: from a fine-tuning stage in params.yaml to the optimiser's parameter groups and learning rates."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from rootstock.backbones.blocks import blocks
from rootstock.backbones.depths import is_below, uncut
from rootstock.config import params
from rootstock.system.errors import ParamsError
from rootstock.training import adapters
from rootstock.training.classifier import Classifier
from rootstock.training.stage_plan import depths

FIRST_BLOCK = "first_block"
VIT_LAYER_DECAY, VIT_PARAMETERS = 0.75, ("cls_token", "class_token", "pos_embed")


def check_stages(network: nn.Module, settings: params.Finetune) -> None:
    """Check that every stage names layers of the network.

    Raises:
        ParamsError: names the key, the allowed values and the closest match.
    """
    for index, stage in enumerate(settings.stages):
        for depth in depths(stage):
            unfrozen_blocks(network, depth, f"finetune.stages[{index}].unfreeze")


def unfrozen_blocks(network: nn.Module, unfreeze: str | Sequence[str], key: str = "unfreeze") -> Sequence[int]:
    """Return the indices of the blocks that `unfreeze` trains, in order; none if only the head is trained."""
    count = len(parameters_by_block(network))
    ends = {FIRST_BLOCK: [0], "last_block": [count - 1]}
    if not isinstance(unfreeze, str):
        allowed = f"{', '.join(ends)}, or a layer"
        found = [ends.get(name) or _blocks_with(network, name, [*ends], allowed, key) for name in unfreeze]
        return sorted({index for indices in found for index in indices})
    if unfreeze == FIRST_BLOCK:
        return ends[unfreeze]
    if unfreeze == adapters.LORA:  # beside the layers of all blocks
        return range(count)
    if (first := _first_of(count).get(unfreeze)) is not None:
        return range(max(0, first), count)
    allowed = f"{', '.join(params.UNFREEZE_CHOICES)}, {params.AUTO}, or a layer"
    return range(_blocks_with(network, unfreeze, params.UNFREEZE_CHOICES, allowed, key)[0], count)


def _first_of(count: int) -> dict[str, int]:
    """Return the first of so many blocks that a choice trains, with all after it."""
    last = {"head": 0, "last_block": 1, "last_2_blocks": 2, "last_3_blocks": 3, "last_half": count // 2, "all": count}
    return {name: count - blocks for name, blocks in last.items()}


def _blocks_with(network: nn.Module, layer: str, choices: Sequence[str], allowed: str, key: str) -> list[int]:
    """Return the indices of the blocks with parameters of a layer: a block, a part of one, or several together.

    Raises:
        ParamsError: there are none, with what is allowed and the nearest of the choices and layers.
    """
    listed = parameters_by_block(network)
    layers = dict(uncut(network).named_modules())
    inside = {id(parameter) for parameter in layers[layer].parameters()} if layer in layers else set()
    found = [index for index, (_, own) in enumerate(listed) if any(id(parameter) in inside for parameter in own)]
    if found:
        return found
    names = [name for name, _ in listed]
    near = get_close_matches(layer, [*choices, *names, *layers], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ParamsError(f"params.yaml: {key} is {layer!r}; expected {allowed}: {', '.join(names)}.{hint}")


def unfreeze(model: Classifier, stage: params.Stage) -> None:
    """Let the parameters of a stage's layers, and of the head, require gradients, and no others."""
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    for parameters in _trained(model.backbone, stage).values():
        for parameter in parameters:
            parameter.requires_grad_(True)


def _trained(network: nn.Module, stage: params.Stage) -> dict[int, list[nn.Parameter]]:
    """Return the parameters of the network that a stage trains, by how many blocks below the head they are."""
    if stage.unfreeze == adapters.LORA:
        return {0: adapters.parameters(network)}
    layers = [parameters for _, parameters in parameters_by_block(network)]
    return {len(layers) - index: layers[index] for index in reversed(unfrozen_blocks(network, stage.unfreeze))}


def optimiser_of(model: Classifier, stage: params.Stage, settings: params.Finetune) -> torch.optim.AdamW:
    """Unfreeze a stage's layers and return its AdamW: layer-wise rate decay, no weight decay on biases and norms."""
    lr = stage.lr
    assert not isinstance(lr, str)  # `auto` has been found by now
    unfreeze(model, stage)
    groups = _groups(list(model.head.parameters()), lr, settings)
    decay: float = settings.layer_decay or default_layer_decay(model.backbone)
    for below, parameters in _trained(model.backbone, stage).items():
        groups += _groups(parameters, lr * decay**below, settings)
    return torch.optim.AdamW(groups, fused=True)  # a tenth faster steps on a CPU, more on a GPU


def default_layer_decay(network: nn.Module) -> float:
    """Return the layer-wise decay that the literature has for a network: 0.75 for vision transformers, else 1.

    That of BEiT (Bao et al. 2022) and MAE (He et al. 2022) lies between 0.65 and 0.75.
    """
    return VIT_LAYER_DECAY if is_vision_transformer(network) else 1.0


def is_vision_transformer(network: nn.Module) -> bool:
    """Tell a vision transformer by its class token or position embedding."""
    names = [name.rpartition(".")[2] for name, _ in network.named_parameters()]
    return any(name.startswith(VIT_PARAMETERS) for name in names)


def parameters_by_block(network: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """Return the parameters of each block up to where the network is cut, without those of adapters.

    Parameters outside all blocks (a class token) belong to the first block.
    """
    added = {id(parameter) for parameter in adapters.parameters(network)}
    listed = [
        (name, [p for part in modules for p in part.parameters() if id(p) not in added])
        for name, modules in blocks(uncut(network))
    ]
    inside = {id(parameter) for _, parameters in listed for parameter in parameters} | added
    listed[0][1].extend(parameter for parameter in network.parameters() if id(parameter) not in inside)
    return [(name, parameters) for name, parameters in listed if is_below(network, name)]


def _groups(parameters: list[nn.Parameter], lr: float, settings: params.Finetune) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [(matrices, settings.weight_decay), (vectors, 0.0)]
    return [{"params": some, "peak": lr, "lr": lr, "weight_decay": decay} for some, decay in groups if some]
