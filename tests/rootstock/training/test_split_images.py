"""Mini-batches of a split on a device: the device keeps the images of the first pass, and many images are decoded in
processes."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from rootstock.config.architectures import Transform
from rootstock.dataset.shards import Reader
from rootstock.images import loader
from rootstock.system import processes
from rootstock.training import split_images
from rootstock.training.ranks import Ranks
from rootstock.training.split_images import Batches, SplitImages
from tests.small_dataset import Small

TRANSFORM = Transform(32, 36, "bilinear", (0.5,) * 3, (0.25,) * 3)
CPU = torch.device("cpu")
BATCH = 16


@pytest.fixture
def reader(small) -> Iterator[Reader]:
    with Reader(small.images) as opened:
        yield opened


@pytest.fixture
def keeps(monkeypatch) -> None:
    """The CPU keeps images, as a GPU does."""
    monkeypatch.setattr(split_images, "KEEPS_IMAGES", ("cpu",))


def batches_of(small: Small, reader: Reader, *others, **named) -> Batches:
    return Batches(SplitImages(small.split("train"), small.images), reader, TRANSFORM, BATCH, CPU, *others, **named)


def orders(batches: Batches, count: int) -> list[np.ndarray]:
    return [np.random.default_rng(number).permutation(len(batches.images.rows)) for number in range(count)]


def decoded(small: Small, reader: Reader) -> Tensor:
    """Return the images of the split (n, 3, size, size) in the order of its rows."""
    return torch.cat(list(batches_of(small, reader)()))


def assert_equal(found: list[Tensor], expected: Tensor) -> None:
    """Compare mini-batches with the images that they are to hold, and the way these lie in memory with a decoder's."""
    assert list(map(len, found)) == loader.batch_sizes(len(expected), BATCH)[-len(found) :]
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in found)
    assert torch.equal(torch.cat(found), expected[-sum(map(len, found)) :])


def test_a_device_takes_the_images_of_later_passes_from_its_memory_in_any_order(small, reader, keeps, work):
    images, batches = decoded(small, reader), batches_of(small, reader)
    work.decoded.clear()
    for order in orders(batches, 3):
        assert_equal(list(batches(order)), images[order])
        assert_equal(list(batches(order, skip=2)), images[order])
    assert_equal(list(batches()), images)
    assert len(work.decoded) == len(images)


def test_a_pass_without_its_first_mini_batches_or_left_early_keeps_no_image(small, reader, keeps, work):
    images, batches = decoded(small, reader), batches_of(small, reader)
    first, second, third = orders(batches, 3)
    assert_equal(list(batches(first, skip=2)), images[first])  # a run that was resumed
    begun = batches(second)
    next(begun)
    begun.close()
    work.decoded.clear()
    assert_equal(list(batches(third)), images[third])
    assert len(work.decoded) == len(images)


def test_augmented_images_are_not_those_that_the_device_keeps(small, reader, keeps):
    batches, plain = batches_of(small, reader, "crop"), batches_of(small, reader)
    expected = list(batches_of(small, reader, "crop")(seed=3))
    for _ in range(2):
        assert all(torch.equal(one, other) for one, other in zip(batches(seed=3), expected, strict=True))
        assert_equal(list(batches()), torch.cat(list(plain())))


def test_images_are_decoded_again_where_the_device_has_no_room_for_them(small, reader, keeps, work, monkeypatch):
    asked, images = [], decoded(small, reader)
    monkeypatch.setattr(split_images, "fits_into_memory", lambda size, device: asked.append(size))
    batches = batches_of(small, reader)
    work.decoded.clear()
    for order in orders(batches, 2):
        assert_equal(list(batches(order)), images[order])
    assert set(asked) == {images.numel()}
    assert len(work.decoded) == 2 * len(images)


def test_each_of_several_processes_has_its_share_of_every_order(small, reader, keeps):
    """The next epoch needs images that another process has decoded."""
    images = decoded(small, reader)
    shares = [batches_of(small, reader, ranks=Ranks(rank, 2)) for rank in range(2)]
    for order in orders(shares[0], 2):
        for number, both in enumerate(zip(*(share(order) for share in shares), strict=True)):
            whole = torch.empty(sum(map(len, both)), 3, 32, 32, dtype=torch.uint8)
            whole[::2], whole[1::2] = both
            assert torch.equal(whole, images[order[number * BATCH : (number + 1) * BATCH]])


# Decoding in processes


@pytest.mark.parametrize(
    ("device", "cores", "images", "expected"),
    [("cuda", 4, 72, True), ("cuda", 3, 72, False), ("cuda", 4, 71, False), ("cpu", 64, 10**9, False)],
)
def test_many_images_are_decoded_in_processes_where_many_cores_have_nothing_to_train(
    small, reader, monkeypatch, device, cores, images, expected
):
    monkeypatch.setattr(processes, "cores", lambda: cores)
    monkeypatch.setattr(processes, "FROM_CORES", 4)
    monkeypatch.setattr(processes, "FROM_IMAGES", 72)
    rows = small.split("train").iloc[:images]
    assert len(rows) == min(72, images)
    batches = Batches(SplitImages(rows, small.images), reader, TRANSFORM, BATCH, torch.device(device))
    assert batches.in_processes == expected


def test_mini_batches_decoded_in_processes_are_those_decoded_in_threads(small, reader, work):
    images, batches = decoded(small, reader), batches_of(small, reader)
    batches.in_processes = True
    [order] = orders(batches, 1)
    work.decoded.clear()
    assert_equal(list(batches(order)), images[order])
    assert work.decoded == []  # here
