"""Dynamic batching: what waits is computed together, and nobody waits where there is nothing to wait for."""

import threading
import time
from dataclasses import dataclass, field, replace

import pytest

from rootstock.model.serving import served
from rootstock.model.serving.batching import Batcher
from rootstock.model.serving.limits import Refused
from rootstock.model.serving.served import Served
from tests.serving import until


@dataclass
class Recorded:
    """The batches that models compute, by the name of the model; `gate` holds what decodes until it is opened."""

    batches: list[tuple[str, int]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def record(self, model: Served, *, slow: str = "") -> Served:
        """Return the model with its batches recorded, and the decoding of one image, by its name, held."""
        recorded = self

        class Recording(Served):
            def prepare(self, name, data):
                assert name != slow or recorded.gate.wait(60)
                return super().prepare(name, data)

            def predict(self, names, images):
                recorded.batches.append((self.name, len(images)))
                return super().predict(names, images)

        return Recording(**vars(model))


@pytest.fixture(scope="module")
def model(head_model) -> Served:
    return served.load(served.in_folder(head_model))


@pytest.fixture
def started():
    """Start batchers that end with the test."""
    all_of_them: list[Batcher] = []

    def start(queue: int = 100, wait_s: float = 0.02, threads: int = 1) -> Batcher:
        all_of_them.append(Batcher(queue, wait_s, threads))
        return all_of_them[-1]

    yield start
    for batcher in all_of_them:
        batcher.close(20)
        assert not batcher.is_alive


def test_images_that_wait_are_computed_together_up_to_a_batch(model, started, photos):
    recorded, size = Recorded(), model.batch_size
    slow = recorded.record(model, slow="slow.png")
    batcher = started(queue=10 * size, wait_s=5)
    first = batcher.submit(slow, [("slow.png", photos[0][1])])
    many = [photos[number % len(photos)] for number in range(size + 3)]
    rest = [one for name in many for one in batcher.submit(slow, [name])]  # each of another request
    recorded.gate.set()
    names = [one.result(60).name for one in [*first, *rest]]
    assert names == ["slow.png", *(name for name, _ in many)]
    assert [images for _, images in recorded.batches] == [size, 4]


def test_an_image_alone_is_computed_at_once(model, started, photos):
    [asked] = started(wait_s=60).submit(model, photos[:1])
    assert asked.result(20).label


def test_an_image_that_takes_long_to_decode_holds_up_no_other(model, started, photos):
    recorded = Recorded()
    slow = recorded.record(model, slow="slow.png")
    batcher = started(threads=2)
    [last] = batcher.submit(slow, [("slow.png", photos[0][1])])
    assert [one.result(20).reason for one in batcher.submit(slow, photos)] == [None] * len(photos)
    assert not last.done()
    recorded.gate.set()
    assert last.result(20).label


def test_images_of_two_models_are_computed_apart_each_by_its_own(model, started, photos):
    recorded = Recorded()
    old = recorded.record(model, slow="slow.png")
    new = recorded.record(replace(model, name="new"))
    batcher = started(wait_s=5)
    asked = batcher.submit(old, [("slow.png", photos[0][1])])
    asked += batcher.submit(new, photos[:2]) + batcher.submit(old, photos[2:3])
    recorded.gate.set()
    assert all(one.result(20).label for one in asked)
    assert sorted(recorded.batches) == sorted([(model.name, 2), ("new", 2)])


def test_an_error_of_the_engine_reaches_those_who_asked_and_the_next_images_are_computed(model, started, photos):
    def forward(images):
        raise MemoryError("no room")

    broken = replace(model.extractor, engine=replace(model.extractor.engine, forward=forward))
    batcher = started()
    asked = batcher.submit(replace(model, extractor=broken, extractor_of_batches=broken), photos[:2])
    for one in asked:
        with pytest.raises(MemoryError, match="no room"):
            one.result(20)
    assert batcher.is_alive and batcher.submit(model, photos[:1])[0].result(20).label


def test_a_request_is_let_in_as_a_whole_or_not_at_all_and_what_was_cancelled_takes_no_place(model, started, photos):
    recorded = Recorded()
    slow = recorded.record(model, slow="slow.png")
    batcher = started(queue=5)
    first = batcher.submit(slow, [("slow.png", photos[0][1])])
    until(lambda: len(batcher) == 0, "the first image is being decoded", 20)
    waiting = batcher.submit(slow, photos[:3])
    with pytest.raises(Refused, match="3 images are waiting already"):
        batcher.submit(slow, photos[:3])
    assert len(batcher) == 3
    for one in waiting:
        assert one.cancel()
    asked = batcher.submit(slow, photos[:5])
    recorded.gate.set()
    assert all(one.result(20).label for one in [*first, *asked])
    assert sum(images for _, images in recorded.batches) == 6


def test_closing_predicts_what_waits(model, photos):
    batcher = Batcher(100, 0.02, 2)
    asked = batcher.submit(model, photos)
    batcher.close(20)
    assert all(one.result(0).label for one in asked) and not batcher.is_alive


def test_full_batches_go_to_the_engine_that_was_compiled_for_them(model, photos):
    sizes: list[tuple[str, int]] = []

    def noting(name, extractor, size):
        def forward(images):
            sizes.append((name, len(images)))
            return extractor.engine.forward(images)

        return replace(extractor, engine=replace(extractor.engine, forward=forward, batch_size=size))

    both = replace(
        model, extractor=noting("one", model.extractor, 1), extractor_of_batches=noting("batch", model.extractor, 4)
    )
    prepared = [both.prepare(*photo) for photo in photos[:4]]
    for count in (1, 3, 4):
        names = [name for name, _ in photos[:count]]
        assert [one.name for one in both.predict(names, prepared[:count])] == names
    assert sizes == [("one", 1)] * 4 + [("batch", 4)]


def test_an_image_waits_for_others_on_their_way_only_so_long(model, started, photos):
    recorded = Recorded()
    slow = recorded.record(model, slow="slow.png")
    batcher = started(threads=2, wait_s=0.3)
    batcher.submit(slow, [("slow.png", photos[0][1])])
    begin = time.monotonic()
    assert batcher.submit(slow, photos[:1])[0].result(20).label
    assert 0.3 <= time.monotonic() - begin < 5
    recorded.gate.set()
