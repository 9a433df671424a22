"""What is known of the images of a table before they are looked up: what was read, and what an interrupted run saw."""

import time
from dataclasses import dataclass, field
from functools import cached_property

from rootstock.ingest.scan import Scan

EVERY_S, VALID_S = 20.0, 3600.0  # what has been seen is kept as often, and believed for as long


@dataclass
class Lookups:
    """The addresses of a source: to look up a million of a web server takes ten minutes.

    Args:
        scan: the scan cache, which keeps what has been seen until all of them are.
        source: the path of the source.
    """

    scan: Scan
    source: str
    fresh: list[tuple[str, str]] = field(default_factory=list)
    due: float = field(default_factory=lambda: time.monotonic() + EVERY_S)

    @cached_property
    def resumes(self) -> bool:
        """Whether a run was interrupted while it looked up this source."""
        return self.scan.has_seen(self.source)

    def last_stamp(self, path: str) -> str | None:
        """Return the stamp that an image had when it was read; None if it never was."""
        return self.scan.last_stamp(self.source, path)

    def seen(self, place: str) -> str | None:
        """Return the stamp of an address that an interrupted run has just seen."""
        return self.scan.seen(self.source, place, time.time() - VALID_S) if self.resumes else None

    def add(self, place: str, stamp: str) -> None:
        """Keep the stamp of an address."""
        self.fresh.append((place, stamp))
        if time.monotonic() >= self.due:
            self.scan.keep_seen(self.source, self.fresh, time.time())
            self.fresh, self.due = [], time.monotonic() + EVERY_S

    def end(self) -> None:
        """Forget what has been seen: the next run looks again."""
        self.fresh = []
        self.scan.forget_seen(self.source)
