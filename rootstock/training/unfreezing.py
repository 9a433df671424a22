"""Unfreezing: from a fine-tuning stage in params.yaml to the optimiser's parameter groups and learning rates."""

from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from rootstock.backbones.blocks import blocks
from rootstock.backbones.depths import is_below, uncut
from rootstock.config import params
from rootstock.system.errors import ParamsError
from rootstock.training.classifier import Classifier
from rootstock.training.stage_plan import expanded


def check_stages(network: nn.Module, settings: params.Finetune) -> None:
    """Check that every stage names a layer of the network.

    Raises:
        ParamsError: names the key, the allowed values and the closest match.
    """
    for index, stage in enumerate(settings.stages):
        for one in expanded((stage,)):
            unfrozen_from(network, one.unfreeze, f"finetune.stages[{index}].unfreeze")


def unfrozen_from(network: nn.Module, unfreeze: str, key: str = "unfreeze") -> int:
    """Return the index of the first block that `unfreeze` trains; the number of blocks if only the head is."""
    listed = parameters_by_block(network)
    names = [name for name, _ in listed]
    if unfreeze in params.UNFREEZE_CHOICES:
        shares = {"all": len(names), "last_half": len(names) // 2}
        depth = shares.get(unfreeze, params.UNFREEZE_CHOICES.index(unfreeze))
        return max(0, len(names) - depth)
    layers = dict(uncut(network).named_modules())
    inside = {id(parameter) for parameter in layers[unfreeze].parameters()} if unfreeze in layers else set()
    for index, (_, parameters) in enumerate(listed):
        if any(id(parameter) in inside for parameter in parameters):
            return index
    near = get_close_matches(unfreeze, [*params.UNFREEZE_CHOICES, *names, *layers], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    allowed = f"{', '.join(params.UNFREEZE_CHOICES)}, {params.AUTO_UNFREEZE}, or a layer: {', '.join(names)}"
    raise ParamsError(f"params.yaml: {key} is {unfreeze!r}; expected {allowed}.{hint}")


def optimiser_of(model: Classifier, stage: params.Stage, settings: params.Finetune) -> torch.optim.AdamW:
    """Unfreeze a stage's layers and return its AdamW: layer-wise rate decay, no weight decay on biases and norms."""
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    layers = [parameters for _, parameters in parameters_by_block(model.backbone)]
    groups = _groups(list(model.head.parameters()), stage.lr, settings)
    for depth, parameters in enumerate(reversed(layers[unfrozen_from(model.backbone, stage.unfreeze) :]), start=1):
        for parameter in parameters:
            parameter.requires_grad_(True)
        groups += _groups(parameters, stage.lr * settings.layer_decay**depth, settings)
    on_gpu = model.head.weight.is_cuda
    for group in groups if on_gpu else []:  # read by the GPU in each step, so that a CUDA graph may hold it
        group["lr"] = torch.tensor(group["lr"], device=model.head.weight.device)
    return torch.optim.AdamW(groups, fused=True, capturable=on_gpu)  # a tenth faster steps on a CPU, more on a GPU


def parameters_by_block(network: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """Return the parameters of each block up to where the network is cut.

    Parameters outside all blocks (a class token) belong to the first block.
    """
    listed = [(name, [p for part in modules for p in part.parameters()]) for name, modules in blocks(uncut(network))]
    inside = {id(parameter) for _, parameters in listed for parameter in parameters}
    listed[0][1].extend(parameter for parameter in network.parameters() if id(parameter) not in inside)
    return [(name, parameters) for name, parameters in listed if is_below(network, name)]


def _groups(parameters: list[nn.Parameter], lr: float, settings: params.Finetune) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [(matrices, settings.weight_decay), (vectors, 0.0)]
    return [{"params": some, "peak": lr, "lr": lr, "weight_decay": decay} for some, decay in groups if some]
