"""From shards to batches of pixels: in order, on threads, in bounded memory, with reproducible augmentations."""

import io
import resource
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from rootstock.config.architectures import Transform
from rootstock.dataset.shards import Reader
from rootstock.images import decoding, loader
from rootstock.images.loader import DECODED_TOGETHER, Normalise, Ref, prepare
from rootstock.system.parallel import grouped, ordered_map

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TO_32 = Transform(32, 36, "bilinear", MEAN, STD)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def noise(width: int, height: int) -> bytes:
    values = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return png(Image.fromarray(values))


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def batches(reader: Reader, refs: list[Ref], transform: Transform, batch_size: int, *others, **named):
    """Read images in mini-batches of one size, but for the last."""
    return loader.batches(reader, refs, transform, loader.batch_sizes(len(refs), batch_size), *others, **named)


def refs_of(small, seeded: bool = False) -> list[Ref]:
    rows = small.manifest
    places = zip(rows["shard"], rows["offset"], rows["size"], strict=True)
    return [Ref(*place, seed=index if seeded else None) for index, place in enumerate(places)]


class CountingReader(Reader):
    """Counts the images that have been asked for."""

    def __init__(self, folder) -> None:
        super().__init__(folder)
        self.asked, self.lock = 0, threading.Lock()

    def read(self, shard: str, offset: int, size: int) -> bytes:
        with self.lock:
            self.asked += 1
        return super().read(shard, offset, size)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [1, 32, 500])
def test_images_come_in_order_in_batches_for_any_number_of_threads(small, threads, batch_size):
    refs = refs_of(small)[::-1]
    with Reader(small.images) as reader:
        got = list(batches(reader, refs, TO_32, batch_size, threads=threads))
        one_by_one = [prepare(reader.read(ref.shard, ref.offset, ref.size), TO_32) for ref in refs]
    full, rest = divmod(len(refs), batch_size)
    assert [len(batch) for batch in got] == [batch_size] * full + [rest] * bool(rest)
    assert np.array_equal(torch.cat(got).permute(0, 2, 3, 1), one_by_one)


def test_a_batch_is_uint8_with_channels_last_in_memory(small):
    with Reader(small.images) as reader:
        batch = next(batches(reader, refs_of(small), TO_32, 8))
    assert batch.shape == (8, 3, 32, 32) and batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("batch_size", "threads", "ahead"), [(32, 1, 2 * 32), (8, 2, 2 * 2 * DECODED_TOGETHER)])
def test_at_most_two_batches_or_two_groups_per_thread_are_read_ahead(small, batch_size, threads, ahead):
    reader = CountingReader(small.images)
    with reader:
        for taken, _ in enumerate(batches(reader, refs_of(small), TO_32, batch_size, threads=threads), start=1):
            time.sleep(0.01)  # a slow network
            assert reader.asked <= taken * batch_size + ahead
    assert reader.asked == len(small.manifest)


def test_the_threads_stop_when_the_consumer_stops_early(small):
    reader, before = CountingReader(small.images), threading.active_count()
    with reader:
        next(stream := batches(reader, refs_of(small), TO_32, 8, threads=2))
        stream.close()
        assert reader.asked <= 8 + 2 * 2 * DECODED_TOGETHER and threading.active_count() == before


def test_an_image_that_cannot_be_read_is_an_error_and_not_a_gap(small):
    refs = refs_of(small)
    refs[50] = Ref(refs[50].shard, 10**9, 100)
    with Reader(small.images) as reader, pytest.raises(OSError, match="restore it with `dvc checkout`"):
        list(batches(reader, refs, TO_32, 8))


@given(st.lists(st.integers()), st.integers(1, 5), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_an_ordered_map_equals_a_map(items, threads, window):
    assert list(ordered_map(lambda item: item * 2, items, threads, window)) == [item * 2 for item in items]


@given(st.lists(st.integers(0, 5)), st.integers(1, 9))
def test_a_group_is_complete_as_soon_as_it_reaches_the_weight(weights, size):
    groups = list(grouped(weights, size, weigh=lambda weight: weight))
    assert [weight for group in groups for weight in group] == weights
    assert all(sum(group[:-1]) < size for group in groups) and all(sum(group) >= size for group in groups[:-1])


# Augmentation


def test_an_augmented_image_depends_only_on_its_seed(small):
    refs = refs_of(small, seeded=True)
    with Reader(small.images) as reader:
        one, two, backwards = (
            torch.cat(list(batches(reader, order, TO_32, size, "crop_flip", threads)))
            for order, size, threads in ((refs, 8, 1), (refs, 32, 4), (refs[::-1], 5, 2))
        )
        others = [Ref(ref.shard, ref.offset, ref.size, ref.seed + 1000) for ref in refs]
        other = torch.cat(list(batches(reader, others, TO_32, 8, "crop_flip")))
        plain = torch.cat(list(batches(reader, refs, TO_32, 8, "none")))
    assert torch.equal(one, two) and torch.equal(one, backwards.flip(0))
    assert all((one != changed).flatten(1).any(1).float().mean() > 0.95 for changed in (other, plain))


def test_an_image_without_a_seed_is_not_augmented():
    data = noise(60, 40)
    assert np.array_equal(prepare(data, TO_32, "crop_flip", None), prepare(data, TO_32))


@pytest.mark.parametrize(("augment", "mirrored"), [("crop", (0, 0)), ("crop_flip", (0.35, 0.65))])
def test_half_of_the_images_are_mirrored_by_crop_flip_and_none_by_crop(augment, mirrored):
    rising = png(Image.fromarray(np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (64, 1, 3))))
    images = [prepare(rising, TO_32, augment, seed).astype(int) for seed in range(200)]
    falls = np.mean([image[:, 0].mean() > image[:, -1].mean() for image in images])
    assert mirrored[0] <= falls <= mirrored[1]


def test_a_crop_covers_60_to_100_percent_of_the_image():
    width = height = 200
    y, x = np.mgrid[:height, :width]
    place = png(Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8)))  # pixels say where they are from
    shares, ratios = [], []
    for seed in range(100):
        seen = prepare(place, TO_32, "crop", seed).astype(float)
        shown = np.ptp(seen[..., 0]) * 32 / 31, np.ptp(seen[..., 1]) * 32 / 31
        shares.append(shown[0] * shown[1] / (width * height))
        ratios.append(shown[0] / shown[1])
    assert 0.55 < min(shares) < 0.65 and 0.93 < max(shares) < 1.05
    assert 0.7 < min(ratios) < 0.85 and 1.18 < max(ratios) < 1.4


# Any image


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    size=st.integers(16, 64),
    more=st.integers(0, 20),
    augment=st.sampled_from(["none", "crop", "crop_flip", "randaugment"]),
    interpolation=st.sampled_from(list(decoding.INTERPOLATION)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_an_image_of_any_size_fills_the_square(width, height, size, more, augment, interpolation, seed):
    seen = prepare(noise(width, height), Transform(size, size + more, interpolation, MEAN, STD), augment, seed)
    assert seen.shape == (size, size, 3) and seen.dtype == np.uint8


@pytest.mark.parametrize("across", [False, True])
def test_the_middle_of_a_very_long_image_is_cropped_without_resizing_the_rest(across):
    strip = np.zeros((9, 200_001, 3), np.uint8)
    strip[:, 100_000 - 200 : 100_000 + 201] = (200, 100, 50)
    strip = strip.transpose(1, 0, 2) if across else strip
    before = peak_megabytes()
    seen = prepare(png(Image.fromarray(strip)), Transform(224, 256, "bilinear", MEAN, STD))
    assert peak_megabytes() - before < 500  # all of it, resized, would take 4,400
    assert (seen == (200, 100, 50)).all()


def test_normalising_subtracts_the_mean_and_divides_by_the_standard_deviation():
    batch = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    expected = (batch / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(Normalise(TO_32)(batch), expected, rtol=1e-5, atol=1e-5)
    assert Normalise(TO_32).state_dict() == {}  # it is in the description, not in the weights


def test_a_transform_survives_json():
    assert Transform.from_dict(TO_32.as_dict()) == TO_32
