"""Dynamic batching: images of all requests wait in one bounded queue, and those that are decoded are computed together.

A thread per core takes what is most urgent: a batch that is due, else an image to decode. So a file that takes long to
decode keeps one core, and no other image waits for it. A batch is due when it is full, when no other image is on its
way, or when its first image has waited for long enough; with little to do, nobody waits.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from rootstock.features.preparing import Prepared
from rootstock.images.reasons import Rejected
from rootstock.model.model import Prediction
from rootstock.model.serving.limits import overloaded
from rootstock.model.serving.served import Served, rejected
from rootstock.system.parallel import cores, limit_to_one_core

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Waiting:
    """An image on its way to its prediction by the model that was served when it arrived."""

    served: Served
    name: str
    data: bytes
    prediction: "Future[Prediction]" = field(default_factory=Future)
    prepared: Prepared | None = None
    decoded_at: float = 0.0

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for the prediction."""
        return not self.prediction.cancelled()


class Batcher:
    """Predicts images on a thread per core.

    Args:
        queue: how many images may wait.
        wait_s: how long a decoded image waits for others.
        threads: None is one per core.
        on_batch: called with the size of each batch, on any thread.
    """

    def __init__(
        self, queue: int, wait_s: float, threads: int | None = None, on_batch: Callable[[int], object] = lambda _: None
    ) -> None:
        self.queue, self.wait_s, self._on_batch = queue, wait_s, on_batch
        self._changed = threading.Condition()
        self._undecoded: deque[Waiting] = deque()
        self._decoded: deque[Waiting] = deque()
        self._decoding, self._closed = 0, False
        self._threads = [
            threading.Thread(target=self._work, name=f"predict-{number}", daemon=True)
            for number in range(threads or cores())
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Return how many images wait."""
        return len(self._undecoded) + len(self._decoded)

    @property
    def is_alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, served: Served, images: Sequence[tuple[str, bytes]]) -> "list[Future[Prediction]]":
        """Let images wait for their predictions: all of a request, or none. What is cancelled is not computed.

        Args:
            served: the model that predicts them.
            images: the name of each, and the bytes of its file.

        Raises:
            Refused: too many images are waiting already.
        """
        waiting = [Waiting(served, name, data) for name, data in images]
        with self._changed:
            self.check(len(waiting))
            self._undecoded += waiting
            self._changed.notify(len(waiting))
        return [image.prediction for image in waiting]

    def check(self, images: int = 1) -> None:
        """Check that there is room for some images.

        Raises:
            Refused: there is not.
        """
        with self._changed:
            if len(self) + images > self.queue:  # those that nobody waits for any more take no room
                self._undecoded = deque(image for image in self._undecoded if image.is_wanted)
                self._decoded = deque(image for image in self._decoded if image.is_wanted)
            if len(self) + images > self.queue:
                raise overloaded(f"{len(self)} images are waiting already")

    def close(self, wait_s: float) -> None:
        """Predict what waits, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        limit_to_one_core()
        while (work := self._next()) is not None:
            self._decode(work) if isinstance(work, Waiting) else self._compute(work)

    def _next(self) -> Waiting | list[Waiting] | None:
        """Wait for a batch that is due or an image to decode; None at the end."""
        with self._changed:
            while True:
                if batch := self._due():
                    return batch
                if self._undecoded:
                    self._decoding += 1
                    return self._undecoded.popleft()
                if self._closed and not self._decoded and not self._decoding:
                    self._changed.notify_all()
                    return None
                rest = self._decoded[0].decoded_at + self.wait_s - time.monotonic() if self._decoded else None
                self._changed.wait(rest if rest is None else max(rest, 0.0))

    def _due(self) -> list[Waiting]:
        """Take the next batch, all of one model, if it is due."""
        if not self._decoded:
            return []
        first = self._decoded[0]
        same = [image for image in self._decoded if image.served is first.served][: first.served.batch_size]
        is_alone = not self._undecoded and not self._decoding
        waited = time.monotonic() >= first.decoded_at + self.wait_s
        if not (is_alone or waited or len(same) == first.served.batch_size):
            return []
        taken = set(map(id, same))
        self._decoded = deque(image for image in self._decoded if id(image) not in taken)
        return same

    def _decode(self, image: Waiting) -> None:
        try:
            if image.is_wanted:
                image.prepared = image.served.prepare(image.name, image.data)
        except Rejected as why:
            _answer(image, rejected(image.name, why))
        except Exception as error:  # the thread goes on; who asked gets the error
            _fail(image, error)
        image.data = b""
        image.decoded_at = time.monotonic()
        with self._changed:
            self._decoding -= 1
            if image.prepared is not None:
                self._decoded.append(image)
            self._changed.notify_all()  # the last image on its way makes the batch due

    def _compute(self, batch: list[Waiting]) -> None:
        images = [(image, image.prepared) for image in batch if image.is_wanted and image.prepared is not None]
        if not images:
            return
        self._on_batch(len(images))
        try:
            names = [image.name for image, _ in images]
            predictions = batch[0].served.predict(names, [prepared for _, prepared in images])
            for (image, _), prediction in zip(images, predictions, strict=True):
                _answer(image, prediction)
        except Exception as error:
            for image, _ in images:
                _fail(image, error)


def _answer(image: Waiting, prediction: Prediction) -> None:
    if image.prediction.set_running_or_notify_cancel():
        image.prediction.set_result(prediction)


def _fail(image: Waiting, error: Exception) -> None:
    if not image.prediction.done() and image.prediction.set_running_or_notify_cancel():
        image.prediction.set_exception(error)
