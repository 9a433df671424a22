"""Batch norm with frozen statistics, folded into the convolution before it: the same function in fewer passes.

    batch_norm(conv(x)) = conv'(x),    weight' = s weight,    bias' = β - s mean + s bias,    s = γ / √(var + ε)

weight' and bias' are computed in every step from the parameters, to which the gradients flow as before, or once for
many batches (`folded_once`). What is saved are the passes over the activations, forwards and backwards: a fifth of a
step of efficientnet_lite0 on a CPU (docs/benchmarks.md). Which batch norm follows which convolution is seen in a
forward pass, and checked in another.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from rootstock.training import depthwise

log = logging.getLogger(__name__)
TOLERANCE = 1e-3  # relative to the largest output; rounding differs
Pair = tuple[nn.Conv2d, nn.BatchNorm2d]
Weights = tuple[Tensor, Tensor]  # of a convolution, and its bias
_kept: ContextVar[dict[nn.Conv2d, Weights] | None] = ContextVar("kept", default=None)


@contextmanager
def folded(model: nn.Module, example: Tensor) -> Iterator[None]:
    """Compute with folded batch norms while the block lasts; weights and their names stay as they are.

    Args:
        model: batch norms in evaluation mode, in training too.
        example: a batch, which goes through the model twice.
    """
    training = model.training
    model.eval()
    with torch.no_grad():
        expected, pairs = _pairs(model, example)
        undo = [_fold(*pair) for pair in pairs]
        try:
            differ = float((model(example) - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
        except Exception:
            differ = float("inf")
            log.debug("folded batch norms failed", exc_info=True)
    with ExitStack() as stack:
        for restore in undo:
            stack.callback(restore)
        if not differ < TOLERANCE:
            log.info("fine_tune: batch norms are not folded into convolutions: outputs would differ by %.2g", differ)
            stack.close()
        model.train(training)
        yield


@contextmanager
def folded_once() -> Iterator[None]:
    """Fold each batch norm once while the block lasts, in which no weights change and no gradients are needed."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def _pairs(model: nn.Module, example: Tensor) -> tuple[Tensor, list[Pair]]:
    """Return the model's output, and each convolution whose output goes into a batch norm."""
    outputs: dict[int, tuple[nn.Conv2d, ReferenceType[Tensor]]] = {}  # weak: else all activations would stay in memory
    pairs: list[Pair] = []

    def computed(module: nn.Module, _: Any, output: Tensor) -> None:  # noqa: ANN401
        if isinstance(module, nn.Conv2d):
            outputs[id(output)] = module, ref(output)

    def given(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found = outputs.get(id(inputs[0]))
        if found and found[1]() is inputs[0] and isinstance(module, nn.BatchNorm2d):
            pairs.append((found[0], module))

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and _function_of(module):
                hooks.callback(module.register_forward_hook(computed).remove)
            elif isinstance(module, nn.BatchNorm2d) and _is_plain(module):
                hooks.callback(module.register_forward_pre_hook(given).remove)
        output: Tensor = model(example)
    once = {id(part) for pair in pairs for part in pair if sum(part in other for other in pairs) == 1}
    return output, [pair for pair in pairs if all(id(part) in once for part in pair)]


def _function_of(convolution: nn.Conv2d) -> Callable[..., Tensor] | None:
    """Return the function that a convolution calls with weight and bias; None for one that does something else."""
    if type(convolution) is nn.Conv2d:
        return depthwise.conv2d if convolution.padding_mode == "zeros" else None
    if _timm_name(convolution) == "conv2d_same.Conv2dSame":
        from timm.layers.conv2d_same import conv2d_same  # there already: importing timm takes a second

        same: Callable[..., Tensor] = conv2d_same
        return same
    return None


def _is_plain(norm: nn.BatchNorm2d) -> bool:
    known = type(norm) is nn.BatchNorm2d or _timm_name(norm) == "norm_act.BatchNormAct2d"
    return known and norm.affine and norm.running_mean is not None


def _timm_name(module: nn.Module) -> str:
    path, _, name = f"{type(module).__module__}.{type(module).__name__}".partition("timm.layers.")
    return "" if path else name


def _weights(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Weights:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - scale * norm.running_mean
    if convolution.bias is not None:
        shift = shift + scale * convolution.bias
    return convolution.weight * scale.view(-1, 1, 1, 1), shift


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Callable[[], None]:
    """Let a convolution compute the batch norm as well; return a function that undoes it."""
    convolve = _function_of(convolution)
    assert convolve is not None  # `_pairs` has looked

    def forward(x: Tensor) -> Tensor:
        kept = _kept.get()
        weights = None if kept is None else kept.get(convolution)
        if weights is None:
            weights = _weights(convolution, norm)
            if kept is not None:
                kept[convolution] = weights
        return convolve(
            x, *weights, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        )  # fmt: skip

    def activation(x: Tensor) -> Tensor:
        if type(norm) is nn.BatchNorm2d:
            return x
        timms: Any = norm  # has its activation inside
        activated: Tensor = timms.act(timms.drop(x))
        return activated

    vars(convolution)["forward"], vars(norm)["forward"] = forward, activation

    def undo() -> None:
        del vars(convolution)["forward"], vars(norm)["forward"]

    return undo
