"""Matrix products in float32, by the faster of torch's two libraries.

On x86 torch multiplies by MKL. oneDNN, which torch has for convolutions, is twice as fast on an AMD EPYC
(docs/benchmarks.md); Intel's CPUs were not measured. torch offers it for float32 only by the operator of which
torch.compile makes linear layers.
"""

import platform
from functools import cache

import torch
from torch import Tensor


def times_transposed(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a @ b.T + bias, for a (m, d), b (n, d) and bias (n,) float32 without gradients, of any strides.

    For threads of one core each: with more, oneDNN may add up parts of a long sum, as many as there are cores, and MKL
    does not.
    """
    if a.device.type == "cpu" and a.shape[1] and _has_one_dnn():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
        return product
    return a @ b.T if bias is None else torch.addmm(bias, a, b.T)


@cache
def _has_one_dnn() -> bool:
    """Tell whether there is the operator, and a CPU on which it was measured."""
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return on_x86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
