"""What ingest found of files and of the images in shards: the rows of the scan cache."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from rootstock.images.reasons import Reason

PACKED = pa.schema(  # the fields of `Packed`
    [
        ("image_id", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("phash", pa.uint64()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class ScanRecord:
    """The result of reading one file: an image id, or a rejection reason."""

    path: str
    stamp: str
    image_id: str | None
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Packed:
    """An image in a shard, "" if that is still open: its ledger entry before a split is assigned."""

    image_id: str
    width: int
    height: int
    format: str
    phash: int
    shard: str = ""
    offset: int = 0
    size: int = 0


def members_in(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield path and stamp of each member of an archive; older versions have size and change, or null, as its stamp."""
    for text in texts:
        for path, stamp in json.loads(text).items():
            yield path, stamp if isinstance(stamp, str) else ":".join(map(str, stamp or ()))
