"""The splits of delivered images, kept on this machine: a delivery may leave the dataset and return.

An undecided delivery waits outside the dataset, and is ingested again together with the next one. Its images keep their
splits meanwhile: test images that somebody has looked at are not trained on, and the challengers of both deliveries can
be compared on the same test images.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rootstock.config import params
from rootstock.dataset import image_ids
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.ledger import NONE, Ledger, split_codes
from rootstock.system.errors import DamagedError
from rootstock.system.files import reading, replacing

NAME = "delivered_splits.parquet"
DRAWN_BY = b"drawn_by"  # in its metadata: the seed and the shares of the splits


def with_remembered(ledger: Ledger, scratch: Path, settings: params.Ingest, seed: int) -> Ledger:
    """Return the ledger in which images that have no split have the one of the last delivery, if they were in it.

    Args:
        ledger: all images ever packed.
        scratch: the folder of the file. A damaged one, or of another seed or other shares, counts as none.
        settings: the section `ingest` of params.yaml.
        seed: of the splits.
    """
    ids, remembered = _read(scratch, settings, seed)
    at = image_ids.find(ids, ledger.ids, ledger.order)
    split, is_there = ledger.split.copy(), at != NONE
    at, remembered = at[is_there], remembered[is_there]
    split[at] = np.where(split[at] == NONE, remembered, split[at])
    return replace(ledger, split=split)


def remember(ledger: Ledger, since: int, scratch: Path, settings: params.Ingest, seed: int) -> None:
    """Write down the splits of images of later batches than `since`, and of those remembered that are in the ledger.

    A run that was killed may have left a part of the delivery in an earlier batch.
    """
    chosen = ledger.batch > since
    at = image_ids.find(_read(scratch, settings, seed)[0], ledger.ids, ledger.order)
    chosen[at[at != NONE]] = True
    chosen &= ledger.split != NONE
    columns = {
        "image_id": image_ids.texts(ledger.ids[chosen]),
        "split": pa.array(np.array(SPLITS, object)[ledger.split[chosen]], pa.string()),
    }
    with replacing(scratch / NAME) as temporary:
        table = pa.table(columns).replace_schema_metadata({DRAWN_BY: _drawn_by(settings, seed)})
        pq.write_table(table, temporary, compression="zstd")


def _read(scratch: Path, settings: params.Ingest, seed: int) -> tuple[image_ids.Digests, NDArray[np.int8]]:
    """Return the images that are remembered, and the codes of their splits (n,)."""
    path, none = scratch / NAME, (image_ids.digests([]), np.empty(0, np.int8))
    try:
        with reading(path):
            table = pq.read_table(path)
    except DamagedError:  # or there is none
        return none
    if (table.schema.metadata or {}).get(DRAWN_BY) != _drawn_by(settings, seed):
        return none
    return image_ids.digests(table["image_id"].to_pylist()), split_codes(table["split"])


def _drawn_by(settings: params.Ingest, seed: int) -> bytes:
    return f"{seed} {settings.split.model_dump_json()}".encode()
