"""Benchmarks say only what they have measured."""

import math

import pytest

from benchmarks import cores, gpu
from rootstock.images import loader


def test_more_cores_than_there_are_are_left_out_and_said_to_be(monkeypatch, capsys):
    monkeypatch.setattr(cores, "cores", lambda: 4)
    assert cores.usable([1, 4, 5, 64, 0]) == [1, 4]
    assert capsys.readouterr().out.splitlines() == [
        f"{count} cores: not measured, this process may use 4" for count in (5, 64, 0)
    ]


@pytest.mark.parametrize(("images", "batch_size"), [(2, 1), (40, 10), (256, 64), (1024, 256), (6000, 256)])
def test_the_loop_of_a_user_is_measured_without_its_first_batch_also_on_few_images(monkeypatch, images, batch_size):
    assert gpu.user_batch_size(images) == batch_size
    sizes, clock = loader.batch_sizes(images, batch_size), [0.0]
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: clock[0])

    def batches():
        for size, seconds in zip(sizes, [30.0, 2.0, *[0.0] * len(sizes)], strict=False):
            clock[0] += seconds
            yield size

    assert gpu.rate_after_first(batches()) == (images - sizes[0]) / 2


def test_a_loop_of_one_batch_has_no_rate():
    assert math.isnan(gpu.rate_after_first(iter([1])))
