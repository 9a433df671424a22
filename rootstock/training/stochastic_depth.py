"""Stochastic depth (Huang et al. 2016), also called drop path: residual branches left out at random in training."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import nn

from rootstock.system.errors import ParamsError

TIMMS = "drop_path"  # what timm calls the place in a block, an identity if a network was built without


@contextmanager
def stochastic_depth(network: nn.Module, rate: float) -> Iterator[None]:
    """Drop residual branches at a rate that rises linearly from 0 in the first block, for the time of a block of code.

    Args:
        network: of torchvision or timm.
        rate: in the last block; 0 leaves the network as it is.

    Raises:
        ParamsError: the network has no place for it.
    """
    if not rate:
        yield
        return
    places = [name for name, module in network.named_modules() if _is_place(name, module)]
    if not places:
        raise ParamsError(
            f"params.yaml: finetune.regularization.drop_path is {rate:g}, and {type(network).__name__} has no residual "
            "branches that could be dropped; expected 0 for it."
        )
    before = {name: network.get_submodule(name) for name in places}
    try:
        for name, own in zip(places, np.linspace(0, rate, len(places)), strict=True):
            network.set_submodule(name, _dropping(before[name], float(own)))
        yield
    finally:
        for name, module in before.items():
            network.set_submodule(name, module)


def _is_place(name: str, module: nn.Module) -> bool:
    from torchvision.ops import StochasticDepth  # takes 1.5 s to import

    in_timm = name.rpartition(".")[2].startswith(TIMMS) and not list(module.children())
    return isinstance(module, StochasticDepth) or in_timm


def _dropping(module: nn.Module, rate: float) -> nn.Module:
    from torchvision.ops import StochasticDepth

    dropping: nn.Module
    if isinstance(module, StochasticDepth):
        dropping = StochasticDepth(rate, module.mode)
    else:
        from timm.layers import DropPath  # there already: importing timm takes a second

        dropping = DropPath(rate)
    return dropping.train(module.training)
