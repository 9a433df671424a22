"""Weights into a network: every name and shape has to agree, and nothing is copied that need not be."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from rootstock.backbones.networks import build
from rootstock.system.errors import WeightsError

State = Mapping[str, Tensor]
# What torchvision's files, older than its code, call what DenseNet and the vision transformers call otherwise now.
PRESENT_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
COUNTER = ".num_batches_tracked"  # of batch norms; files from before torch 0.4.1 (2018) have none, and nothing reads it


def filled(name: str, image_size: int, variant: str | None, state: State, origin: str) -> nn.Module:
    """Build an architecture around weights that are there: random ones are never drawn, and nothing is copied.

    Raises:
        WeightsError: naming each entry that does not fit.
    """
    try:
        with torch.device("meta"):
            network = build(name, image_size, variant)
        load_pretrained_state(network, state, origin)
        if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
            raise NotImplementedError("a buffer that no file holds")
    except (RuntimeError, NotImplementedError):  # RegNet computes with numbers while it is built
        network = build(name, image_size, variant)
        load_pretrained_state(network, state, origin)
    return network


def load_pretrained_state(network: nn.Module, state: State, origin: str) -> None:
    """Give weights to a network that has lost its classification layer.

    Entries of that layer, and of the auxiliary classifiers of GoogLeNet and Inception, are left out; every other
    name, in its present or an older spelling, and shape has to agree.

    Raises:
        WeightsError: naming each entry that does not fit.
    """
    wanted = network.state_dict()
    without = {name for name, module in network.named_modules() if isinstance(module, nn.Identity)}
    counters = {name: torch.zeros_like(v, device="cpu") for name, v in wanted.items() if name.endswith(COUNTER)}
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
    wrong += wrong_kinds(wanted, state)
    if wrong:
        listed = "\n  ".join(sorted(wrong)[:20]) + (f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise WeightsError(f"backbone.weights: {origin} does not fit the architecture:\n  {listed}")
    adopt(network, {name: value.to(wanted[name].dtype) for name, value in state.items()})


def wrong_kinds(wanted: State, state: State) -> list[str]:
    """Say which tensors are not numbers of the kind that a network's own are: what was cast would be noise.

    Weights are floating point, of whatever width; counters and indices are whole numbers, whatever they are stored as.
    """
    wrong = []
    for name in wanted.keys() & state.keys():
        given, own = state[name], wanted[name]
        if given.layout != torch.strided or given.is_meta or given.is_quantized:
            wrong.append(f"{name} is no plain tensor")
        elif given.is_complex() or (own.is_floating_point() and not given.is_floating_point()):
            kind = "floating-point" if own.is_floating_point() else "whole"
            wrong.append(f"{name} has numbers of type {str(given.dtype).removeprefix('torch.')}, expected {kind} ones")
    return wrong


def not_finite(network: nn.Module) -> str | None:
    """Name a tensor of a network that holds what is no finite number."""
    tensors = network.state_dict().items()
    return next((name for name, t in tensors if t.is_floating_point() and not t.isfinite().all()), None)


def adopt(network: nn.Module, state: State) -> None:
    """Make tensors the weights of a network, as they are: what is mapped from a file is not copied."""
    network.load_state_dict(_versioned(network, state), assign=True)


def assign(network: nn.Module, state: State) -> None:
    """Copy weights into a network, on the device that it is on."""
    network.load_state_dict(_versioned(network, state))


def _versioned(network: nn.Module, state: State) -> OrderedDict[str, Tensor]:
    """Say which version of a module weights are from: the present one.

    Safetensors files and plain dictionaries do not say; MNASNet asks.
    """
    versioned = OrderedDict(state)
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    return versioned


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
