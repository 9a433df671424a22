"""Depthwise convolutions whose kernel is larger than their feature map, on a CPU.

The last blocks of mobile networks convolve maps of 3 or 4 pixels with kernels of 5. There oneDNN falls back to a
reference implementation of the weight gradient, which takes up to thirty times as long (docs/benchmarks.md). It is a
sum of products over the few positions at which map and kernel overlap.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int  # noqa: ANN401
) -> Tensor:  # fmt: skip
    """Convolve as torch's `conv2d` does, with a faster gradient where the kernel is larger than the map."""
    if _is_slow(x, weight, stride, padding, dilation, groups):
        y: Tensor = _LargerThanItsMap.apply(x, weight, padding)
        return y if bias is None else y + bias.view(-1, 1, 1)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _is_slow(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:  # noqa: ANN401
    depthwise = groups == x.shape[1] == weight.shape[0] and weight.shape[1] == 1
    kernel, shape = tuple(weight.shape[2:]), tuple(x.shape[2:])
    keeps_shape = tuple(stride) == tuple(dilation) == (1, 1) and tuple(padding) == tuple(side // 2 for side in kernel)
    odd = all(side % 2 for side in kernel)
    larger = any(side > pixels for side, pixels in zip(kernel, shape, strict=True))
    exact = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")  # which casts inside `conv2d`
    return exact and weight.requires_grad and depthwise and keeps_shape and odd and larger


class _LargerThanItsMap(torch.autograd.Function):
    """The forward pass and the input's gradient are torch's."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, padding: Pair) -> Tensor:  # noqa: ANN401
        context.save_for_backward(x, weight)
        context.padding = padding
        return F.conv2d(x, weight, None, 1, padding, 1, x.shape[1])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # noqa: ANN401
        (x, weight), [gradient] = context.saved_tensors, gradients
        of_input = None
        if context.needs_input_grad[0]:
            of_input, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [1, 1], list(context.padding), [1, 1], False, [0, 0], x.shape[1],
                [True, False, False],
            )  # fmt: skip
        return of_input, _weight_gradient(x, gradient, weight.shape), None


def _weight_gradient(x: Tensor, gradient: Tensor, shape: torch.Size) -> Tensor:
    """Return the gradient (c, 1, k, l) of the weights from those of the output, both maps (n, c, h, w)."""
    x, gradient = x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)  # channels are contiguous
    found = x.new_zeros(shape)
    for row in range(shape[2]):
        ys, rows = _overlap(row - shape[2] // 2, x.shape[1])
        for column in range(shape[3]):
            xs, columns = _overlap(column - shape[3] // 2, x.shape[2])
            found[:, 0, row, column] = (x[:, ys, xs] * gradient[:, rows, columns]).sum((0, 1, 2))
    return found


def _overlap(shift: int, pixels: int) -> tuple[slice, slice]:
    """Return the positions of a map, and of the same map shifted, that lie on each other; none if it is too far."""
    shift = max(-pixels, min(pixels, shift))
    return slice(max(0, shift), pixels + min(0, shift)), slice(max(0, -shift), pixels - max(0, shift))
