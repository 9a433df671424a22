"""Load a state dict into a network: every name and shape must match, and nothing is copied needlessly."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from rootstock.backbones.networks import build
from rootstock.system.errors import WeightsError

State = Mapping[str, Tensor]
# Parameter names in torchvision's older weight files -> names in its current code (DenseNet, vision transformers).
CURRENT_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
COUNTER = ".num_batches_tracked"  # of batch norm; missing from files older than torch 0.4.1 (2018), and never read


def build_with_state(name: str, image_size: int, variant: str | None, state: State, origin: str) -> nn.Module:
    """Build an architecture directly from a state dict, without random initialisation or copies.

    Raises:
        WeightsError: entries do not fit; the message lists them.
    """
    try:
        with torch.device("meta"):
            network = build(name, image_size, variant)
        load_pretrained_state(network, state, origin)
        if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
            raise NotImplementedError("a buffer that no weights file contains")
    except (RuntimeError, NotImplementedError):  # RegNet computes with values while it is built
        network = build(name, image_size, variant)
        load_pretrained_state(network, state, origin)
    return network


def load_pretrained_state(network: nn.Module, state: State, origin: str) -> None:
    """Load pretrained weights into a network without its classification layer.

    Entries of that layer, and of the auxiliary classifiers of GoogLeNet and Inception, are skipped; every other name
    (current or older spelling) and shape must match.

    Raises:
        WeightsError: entries do not fit; the message lists them.
    """
    expected = network.state_dict()
    without = {name for name, module in network.named_modules() if isinstance(module, nn.Identity)}
    counters = {name: torch.zeros_like(v, device="cpu") for name, v in expected.items() if name.endswith(COUNTER)}
    state = counters | {
        _current_name(name): value
        for name, value in state.items()
        if name.rpartition(".")[0] not in without and not name.startswith(("aux", "AuxLogits"))
    }
    state = _interpolate_positions(network, expected, state)
    wrong = [f"{name} is missing" for name in expected.keys() - state.keys()]
    wrong += [f"{name} is not in the architecture" for name in state.keys() - expected.keys()]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    wrong += dtype_mismatches(expected, state)
    if wrong:
        listed = "\n  ".join(sorted(wrong)[:20]) + (f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise WeightsError(f"backbone.weights: {origin} does not fit the architecture:\n  {listed}")
    assign_state(network, {name: value.to(expected[name].dtype) for name, value in state.items()})


def dtype_mismatches(expected: State, state: State) -> list[str]:
    """List tensors whose dtype does not match the network's; casting them would produce noise.

    Weights must be floating point of any width; counters and indices are integers and may be stored as any dtype.
    """
    wrong = []
    for name in expected.keys() & state.keys():
        given, own = state[name], expected[name]
        if given.layout != torch.strided or given.is_meta or given.is_quantized:
            wrong.append(f"{name} is not a plain dense tensor")
        elif given.is_complex() or (own.is_floating_point() and not given.is_floating_point()):
            kind = "floating-point" if own.is_floating_point() else "integer"
            wrong.append(f"{name} has dtype {str(given.dtype).removeprefix('torch.')}, expected a {kind} dtype")
    return wrong


def first_non_finite(network: nn.Module) -> str | None:
    """Return the name of the first tensor with NaN or infinite values, or None."""
    tensors = network.state_dict().items()
    return next((name for name, t in tensors if t.is_floating_point() and not t.isfinite().all()), None)


def assign_state(network: nn.Module, state: State) -> None:
    """Use tensors as the weights of a network without copying them; memory-mapped files stay mapped."""
    network.load_state_dict(_versioned(network, state), assign=True)


def copy_state(network: nn.Module, state: State) -> None:
    """Copy weights into a network, on its device."""
    network.load_state_dict(_versioned(network, state))


def copied(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a network's state in the CPU's memory."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _versioned(network: nn.Module, state: State) -> OrderedDict[str, Tensor]:
    """Mark a state dict as written by the current module versions.

    Safetensors files and plain dictionaries carry no versions, and MNASNet requires one.
    """
    versioned = OrderedDict(state)
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    return versioned


def _current_name(name: str) -> str:
    for older, present in CURRENT_NAMES:
        name = older.sub(present, name)
    return name


def _interpolate_positions(network: nn.Module, expected: State, state: State) -> State:
    """Interpolate a vision transformer's position embeddings if the image size differs from its pretraining size."""
    name = "encoder.pos_embedding"
    if name not in state or name not in expected or state[name].shape == expected[name].shape:
        return state
    from torchvision.models.vision_transformer import interpolate_embeddings

    return interpolate_embeddings(network.image_size, network.patch_size, dict(state))  # type: ignore[no-any-return]
