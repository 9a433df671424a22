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


def test_processes_that_train_together_share_the_cores_for_decoding(small, reader, monkeypatch):
    monkeypatch.setattr(processes, "FROM_IMAGES", 1)
    monkeypatch.setattr("rootstock.training.ranks.cores", lambda: 16)
    images, found = SplitImages(small.split("train"), small.images), {}
    for size in (1, 2, 4, 8):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", f"{size}")
        batches = Batches(images, reader, TRANSFORM, BATCH, torch.device("cuda"), ranks=Ranks(0, size))
        found[size] = batches.ranks.threads(), batches.in_processes
    assert found == {1: (16, True), 2: (8, True), 4: (4, True), 8: (2, False)}  # too few to pay


@pytest.mark.parametrize(("images", "how"), [(1, "processes"), (10**9, "threads")])
def test_the_log_says_how_images_are_decoded_for_a_gpu(small, reader, monkeypatch, caplog, images, how):
    monkeypatch.setattr(processes, "FROM_IMAGES", images)
    monkeypatch.setattr("rootstock.training.ranks.cores", lambda: 4)
    split = SplitImages(small.split("train"), small.images)
    with caplog.at_level("INFO"):
        for device in ("cuda", "cpu"):
            Batches(split, reader, TRANSFORM, BATCH, torch.device(device)).log_decoding()
    assert caplog.messages == [f"fine_tune: decoding in 4 {how}"]


@pytest.mark.parametrize(
    ("device", "cores", "images", "expected"),
    [("cuda", 4, 72, True), ("cuda", 3, 72, False), ("cuda", 4, 71, False), ("cpu", 64, 10**9, False)],
)
def test_many_images_are_decoded_in_processes_where_many_cores_have_nothing_to_train(
    small, reader, monkeypatch, device, cores, images, expected
):
    monkeypatch.setattr("rootstock.training.ranks.cores", lambda: cores)
    monkeypatch.setattr(processes, "FROM_IMAGES", 72)
    rows = small.split("train").iloc[:images]
    assert len(rows) == min(72, images)
    batches = Batches(SplitImages(rows, small.images), reader, TRANSFORM, BATCH, torch.device(device))
    assert batches.in_processes == expected


def test_processes_decode_what_threads_would_decode(small, reader, monkeypatch):
    """Here they are none; tests/rootstock/features/test_decoding_for_gpu.py has real ones."""
    counts, images, batches = [], decoded(small, reader), batches_of(small, reader)
    monkeypatch.setattr(
        loader,
        "ordered_map_in_processes",
        lambda decode, groups, *given, count: (counts.append(count), map(decode, groups))[1],
    )
    batches.in_processes = True
    monkeypatch.setattr("rootstock.training.ranks.cores", lambda: 16)
    for size in (1, 4):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", f"{size}")
        [order] = orders(batches, 1)
        assert_equal(list(batches(order)), images[order])
    assert counts == [16, 4]  # its share of the cores
