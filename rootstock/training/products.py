"""Matrix products in float32, by the faster of torch's two libraries.

On x86 torch multiplies by MKL. oneDNN, which torch has for convolutions, is twice as fast on an AMD EPYC, and up to a
quarter slower on an Intel Xeon (docs/benchmarks.md). torch offers it for float32 only by the operator of which
torch.compile makes linear layers.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

CPU_INFO = Path("/proc/cpuinfo")


def times_transposed(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a @ b.T + bias, for a (m, d), b (n, d) and bias (n,) float32 without gradients, of any strides.

    For threads of one core each: with more, oneDNN may add up parts of a long sum, as many as there are cores, and MKL
    does not.
    """
    if a.device.type == "cpu" and a.shape[1] and _one_dnn_is_faster():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
        return product
    return a @ b.T if bias is None else torch.addmm(bias, a, b.T)


@cache
def _one_dnn_is_faster() -> bool:
    """Tell whether the CPU is an AMD, and this torch has oneDNN's product."""
    try:
        is_amd = "AuthenticAMD" in CPU_INFO.read_text()
    except OSError:
        return False
    return is_amd and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
