import platform

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from rootstock.training import products

SIZES = st.integers(0, 40)
ROUNDING = float(np.finfo(np.float32).eps)


def drawn(rng: np.random.Generator, rows: int, columns: int, *, transposed: bool) -> torch.Tensor:
    """Return a matrix of normal numbers of any size and, if transposed, of the other order in memory."""
    values: NDArray[np.float32] = rng.standard_normal((columns, rows) if transposed else (rows, columns), np.float32)
    return torch.from_numpy(values).T if transposed else torch.from_numpy(values)


@given(
    m=SIZES,
    n=SIZES,
    d=SIZES,
    transposed=st.tuples(st.booleans(), st.booleans()),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_is_the_product_within_rounding_whatever_sizes_and_strides(
    m: int, n: int, d: int, transposed: tuple[bool, bool], has_bias: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = (drawn(rng, rows, d, transposed=kind) for rows, kind in zip((m, n), transposed, strict=True))
    bias = torch.from_numpy(rng.standard_normal(n, np.float32)) if has_bias else None

    found = products.times_transposed(a, b, bias)

    added = torch.zeros(n) if bias is None else bias
    exact = torch.addmm(added.double(), a.double(), b.double().T)
    sizes = torch.addmm(added.double().abs(), a.double().abs(), b.double().abs().T)
    assert found.dtype == torch.float32
    assert found.shape == (m, n)
    assert ((found - exact).abs() <= (d + 1) * ROUNDING * sizes).all()


def test_keeps_all_digits_of_float32_in_products_of_a_head() -> None:
    rng = np.random.default_rng(1)
    features, weight = (drawn(rng, rows, 1280, transposed=False) for rows in (2048, 1000))

    found = products.times_transposed(features, weight)

    exact = features.double() @ weight.double().T
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()  # bfloat16 would be wrong by a thousandth


def test_what_is_not_a_number_stays_it() -> None:
    a = torch.tensor([[1.0, torch.nan], [1.0, 2.0]])

    found = products.times_transposed(a, torch.ones(3, 2))

    assert found.isnan().tolist() == [[True] * 3, [False] * 3]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="measured on x86 only")
def test_the_installed_torch_offers_onednns_product() -> None:
    assert products._has_one_dnn()
