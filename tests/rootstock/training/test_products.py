"""A product is that of float32, by either library."""

import platform
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="module", autouse=True, params=["AuthenticAMD", "GenuineIntel"])
def cpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Let the CPU be of one vendor or the other, and so the product by oneDNN or MKL."""
    with pytest.MonkeyPatch.context() as patch:
        described = tmp_path_factory.mktemp("proc") / "cpuinfo"
        described.write_text(f"processor\t: 0\nvendor_id\t: {request.param}\n")
        patch.setattr(products, "CPU_INFO", described)
        products._one_dnn_is_faster.cache_clear()
        yield request.param
    products._one_dnn_is_faster.cache_clear()


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
def test_one_dnn_multiplies_on_amds_cpus_and_the_installed_torch_offers_its_product(cpu: str) -> None:
    assert products._one_dnn_is_faster() == (cpu == "AuthenticAMD")


def test_where_the_cpu_is_not_told_the_product_is_mkls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(products, "CPU_INFO", tmp_path / "none")
    assert not products._one_dnn_is_faster.__wrapped__()
