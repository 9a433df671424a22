"""The open shard: from time to time its images are kept elsewhere, so that a stopped ingest goes on within it.

Of small files from a slow store a shard takes many minutes. What is kept are copies of what has been added since the
last time, as shards in a folder of their own; of shards that are full sooner, nothing is.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rootstock.dataset import shards
from rootstock.images.deep import ObservedRange
from rootstock.ingest.known_ids import KnownIds
from rootstock.ingest.scan import Packed, Scan, ScanRecord
from rootstock.system.files import remove

EVERY_S = 20.0  # work that is lost at most
FOLDER = "open_shard"
SOURCE = "source of the open shard"  # in the scan cache
PREFIX = "open "  # of the copies' names in the scan cache, beside those of shards


def recorded_names(scratch: Path) -> list[str]:
    """Return the names under which the scan cache has the images of copies."""
    return [PREFIX + name for name in shards.names(scratch / FOLDER)]


def forget(scratch: Path) -> None:
    """Remove what is kept."""
    remove(scratch / FOLDER)


class OpenShard:
    """The images of a shard that is still written."""

    def __init__(self, scratch: Path, writer: shards.Writer, scan: Scan) -> None:
        self.scratch, self.folder, self.writer, self.scan = scratch, scratch / FOLDER, writer, scan
        self.images: list[Packed] = []  # without the name of their shard
        self.source = ""  # of what was restored
        self._kept = self._copies = 0  # images, and copies
        self._since = time.monotonic()

    def add(self, image: Packed, data: bytes | memoryview, checksum: int | None = None) -> None:
        """Append an image; its bytes are in the shard then, and only its entry stays in memory."""
        place = self.writer.add(image.image_id, image.format, data, checksum)
        self.images.append(replace(image, shard="", offset=place.offset, size=place.size))

    def restore(self, known: KnownIds) -> None:
        """Append the images that a stopped run has kept, but for those that are known, and add them to these."""
        with shards.Reader(self.folder) as reader:
            for name in shards.names(self.folder):
                images = self.scan.packed([PREFIX + name])
                follows = shards.number_of(name) == self._copies
                if not follows or not images or not shards.is_intact(self.folder, name):
                    # The run was stopped before it had recorded the copy, or the disk has lost or damaged one.
                    shards.path_of(self.folder, name).unlink()
                    continue
                for image in images:
                    if image.image_id not in known:
                        self.add(image, reader.read(name, image.offset, image.size))
                        known.add(image.image_id)
                self._copies += 1
        self._kept = len(self.images)
        self.source = (self.scan.value(SOURCE) or "") if self.images else ""

    def keep(
        self, source: str, records: Sequence[ScanRecord], deep: ObservedRange | None, damaged: Mapping[str, str]
    ) -> bool:
        """Keep what has been added, and record files, if that is due; return whether it was.

        Args:
            source: the path of the source.
            records: the records of its files.
            deep: the value range of deep images among them, if any.
            damaged: image ids of damaged ones among them, with a description.
        """
        if time.monotonic() - self._since < EVERY_S:
            return False
        new = self.images[self._kept :]
        if new:
            with shards.Writer(self.folder, self._copies, sys.maxsize) as copy:
                places = [copy.add(one.image_id, one.format, self.writer.read(one.offset, one.size)) for one in new]
                name = PREFIX + copy.close()
            new = [replace(one, shard=name, offset=at.offset) for one, at in zip(new, places, strict=True)]
            self._kept, self._copies = len(self.images), self._copies + 1
        self.scan.set_value(SOURCE, source)
        self.scan.record(source, records, new, deep, damaged)
        self._since = time.monotonic()
        return True

    def close(self) -> list[Packed]:
        """Finish the shard, if it has any image, and return them; once they are recorded, `forget` what was kept."""
        if self.writer.empty:
            return []
        shard, images = self.writer.close(), self.images
        self.images, self.source, self._kept, self._copies = [], "", 0, 0
        self._since = time.monotonic()
        return [replace(image, shard=shard) for image in images]

    def forget(self) -> None:
        """Remove what was kept of a shard that is recorded."""
        forget(self.scratch)
