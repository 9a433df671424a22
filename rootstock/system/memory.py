"""Memory for images that are being decoded: a room of fixed size that all threads share."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

ROOM_BYTES = 2**30


class Room:
    """So many bytes; who needs more than are free waits, and who needs more than there are has the room alone.

    Whoever is in must not ask for more, and must need nobody who waits.
    """

    def __init__(self, size: int) -> None:
        self.size, self.free = size, size
        self._changed = threading.Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Take bytes, and give them back in the end."""
        size = min(size, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self.free >= size)
            self.free -= size
        try:
            yield
        finally:
            with self._changed:
                self.free += size
                self._changed.notify_all()


DECODING = Room(ROOM_BYTES)
