"""A pass over the features takes as long as its products: in full mini-batches, and without denormal numbers."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from rootstock.training import log_loss
from rootstock.training.log_loss import LogLoss, Solution
from rootstock.training.principal_axes import find_principal_axes
from tests.simulated_features import Chunks, simulated

TINY = torch.finfo(torch.float32).tiny


def denormal(values: torch.Tensor) -> int:
    return int(((values != 0) & (values.abs() < TINY)).sum())


class Uneven(Chunks):
    """Chunks of given sizes, as those of some of a set's images are."""

    def __init__(self, whole: Chunks, sizes: list[int]) -> None:
        super().__init__(whole.x, whole.labels)
        self.sizes = sizes

    def __iter__(self):
        ends = np.cumsum(self.sizes)
        yield from zip(np.split(self.x, ends), np.split(self.labels, ends), strict=True)


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_every_image_is_in_one_mini_batch_and_all_but_the_last_are_full(sizes, batch):
    whole = Uneven(simulated(200), np.minimum(sizes, 10).tolist())
    axes = find_principal_axes(whole)
    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_loss, "BATCH", batch)
        kept = LogLoss(whole, axes, 3, torch.device("cpu"), pool).kept
    assert kept is not None
    assert [len(labels) for _, labels in kept] == [batch] * (200 // batch) + [200 % batch] * (200 % batch > 0)
    rows = torch.cat([torch.cat([z, labels[:, None].float()], 1) for z, labels in kept])
    expected = torch.cat([axes.rotate(torch.from_numpy(whole.x)), torch.from_numpy(whole.labels)[:, None].float()], 1)
    for found in (rows, expected):
        found[:] = found[np.lexsort(found.numpy().T)]
    torch.testing.assert_close(rows, expected)


def test_what_is_left_over_of_chunks_does_not_keep_them_in_memory():
    alive = []

    def chunks():
        for _ in range(20):
            x = np.ones((log_loss.BATCH + 10, 8), np.float32)
            alive.append(weakref.ref(x))
            yield x, np.zeros(len(x), np.int64)

    for _ in log_loss._of_equal_size(chunks()):
        gc.collect()
        assert sum(reference() is not None for reference in alive) <= 2  # this one, and the last


def test_features_that_do_not_vary_leave_no_denormal_coordinates():
    train = simulated(500, d=300)
    train.x[:, ::3] = 0  # channels that a ReLU has silenced
    axes = find_principal_axes(train)
    assert len(axes.variances) == 200
    assert denormal(axes.rotate(torch.from_numpy(train.x))) == 0


def test_classes_that_are_ruled_out_leave_no_denormal_gradient():
    train = simulated(300, k=3)  # of the fourth class there is no image
    with ThreadPoolExecutor(1) as pool:
        loss = LogLoss(train, find_principal_axes(train), 4, torch.device("cpu"), pool)
        found = loss(Solution(torch.zeros(loss.shape, dtype=torch.float64), torch.tensor([0.0, 0, 0, -95]).double()))
    by_weight, by_bias = found.gradient.weight.float(), found.gradient.bias.float()
    assert denormal(by_weight) == denormal(by_bias) == 0
    assert (by_bias[:3] != 0).all()
