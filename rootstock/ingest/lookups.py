"""What is known of the images of a table before they are looked up: what was read, and what an interrupted run saw."""

import logging
import time
from dataclasses import dataclass, field
from functools import cached_property

from rootstock.ingest.scan import ROWS, Scan

log = logging.getLogger(__name__)
AWAY = "away"  # in place of a stamp: whether the file has changed cannot be seen now
EVERY_S, VALID_S = 20.0, 3600.0  # what has been seen is kept as often, and believed for as long


@dataclass
class Lookups:
    """The addresses of a source: to look up a million of a web server takes ten minutes.

    Those that are away are counted: `kept` were read before, `lost` never were.

    Args:
        scan: the scan cache, which keeps what has been seen until all of them are.
        source: the path of the source.
    """

    scan: Scan
    source: str
    fresh: list[tuple[str, str]] = field(default_factory=list)
    due: float = field(default_factory=lambda: time.monotonic() + EVERY_S)
    kept: int = 0
    lost: int = 0
    example: str = ""

    @cached_property
    def resumes(self) -> bool:
        """Whether a run was interrupted while it looked up this source."""
        return self.scan.has_seen(self.source)

    def stamp_of_away(self, path: str) -> str | None:
        """Return the stamp that an image which is away had when it was read, None if it never was, and count it."""
        found = self.scan.last_stamp(self.source, path)
        self.kept, self.lost = self.kept + bool(found), self.lost + (not found)
        self.example = self.example or path
        return found

    def warn_of_away(self, of: int) -> None:
        """Warn of the images that are away, if there are any, among so many."""
        if not self.example:
            return
        what = f"{self.source}: {self.kept + self.lost:,} of {of:,} images cannot be reached (e.g. {self.example})"
        then = [f"{self.kept:,} known and unchanged"] if self.kept else []
        then += [f"{self.lost:,} left out until the next run"] if self.lost else []
        log.warning("%s; %s", what, ", ".join(then))

    def seen(self, place: str) -> str | None:
        """Return the stamp of an address that an interrupted run has just seen."""
        return self.scan.seen(self.source, place, time.time() - VALID_S) if self.resumes else None

    def add(self, place: str, stamp: str) -> None:
        """Keep the stamp of an address."""
        self.fresh.append((place, stamp))
        if len(self.fresh) >= ROWS or time.monotonic() >= self.due:
            self.scan.keep_seen(self.source, self.fresh, time.time())
            self.fresh, self.due = [], time.monotonic() + EVERY_S

    def end(self) -> None:
        """Forget what has been seen: the next run looks again."""
        self.fresh = []
        self.scan.forget_seen(self.source)
