"""Depthwise convolutions with a kernel larger than their map have torch's outputs and gradients."""

import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional as F

from rootstock.training import depthwise


@given(
    height=st.integers(1, 6), width=st.integers(1, 6), k=st.sampled_from([3, 5, 7]), m=st.sampled_from([1, 3, 5]),
    bias=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_outputs_and_gradients_are_torchs(height, width, k, m, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(3, 4, height, width, generator=generator), torch.randn(4, 1, k, m, generator=generator)
    given = [x, weight, torch.randn(4, generator=generator)][: 2 + bias]
    found = []
    for convolve in (F.conv2d, depthwise.conv2d):
        own = [tensor.double().requires_grad_() for tensor in given]
        y = convolve(*own, *([] if bias else [None]), (1, 1), (k // 2, m // 2), (1, 1), 4)
        found.append([y, *torch.autograd.grad(y.sin().sum(), own)])
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("shape", "kernel", "groups", "stride", "padding", "slow"),
    [
        ((2, 4, 3, 3), 5, 4, 1, 2, True),
        ((2, 4, 6, 3), 5, 4, 1, 2, True),  # one side is enough
        ((2, 4, 6, 6), 5, 4, 1, 2, False),
        ((2, 4, 3, 3), 5, 1, 1, 2, False),  # not depthwise
        ((2, 4, 3, 3), 5, 4, 2, 2, False),
        ((2, 4, 6, 6), 5, 4, 1, 0, False),
    ],
)
def test_only_convolutions_that_onednn_is_slow_at_are_replaced(
    monkeypatch, shape, kernel, groups, stride, padding, slow
):
    replaced = []
    apply = depthwise._LargerThanItsMap.apply
    monkeypatch.setattr(depthwise._LargerThanItsMap, "apply", lambda *given: (replaced.append(given), apply(*given))[1])
    weight = torch.randn(4, 4 // groups, kernel, kernel, requires_grad=True)
    depthwise.conv2d(torch.randn(shape), weight, None, (stride,) * 2, (padding,) * 2, (1, 1), groups)
    assert bool(replaced) == slow


def test_in_mixed_precision_torch_computes_all_of_it():
    x, weight = torch.randn(2, 4, 3, 3), torch.randn(4, 1, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise.conv2d(x, weight, None, (1, 1), (2, 2), (1, 1), 4)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and weight.grad is not None
