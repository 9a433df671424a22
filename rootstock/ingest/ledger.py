"""The ledger in memory: of each image ever packed what ingest compares with all others, some 60 bytes.

Images are numbered by their rows. The other columns stay where they are: in the files of the ledger, or, of images
packed since these were written, in the scan cache.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rootstock.dataset import image_ids, shards, table_files, tables
from rootstock.dataset.image_ids import Digests
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.scan import Scan

SCHEMA = tables.SCHEMAS[tables.LEDGER]
NONE = -1  # the code of no split, no group and no image


@dataclass(frozen=True)
class Ledger:
    """The images, in columns.

    `split` are codes of SPLITS, `shard` of `shards` and `group`, the name of the group, of `names`.
    """

    ids: Digests
    phash: NDArray[np.uint64]
    split: NDArray[np.int8]
    batch: NDArray[np.int32]
    shard: NDArray[np.int32]
    group: NDArray[np.int32]
    shards: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def in_shards(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Return which images are in some shards (n,)."""
        chosen = set(names)
        return np.array([shard in chosen for shard in [*self.shards, None]])[self.shard]

    def numbers(self) -> "Numbers":
        """Return what finds images by their ids."""
        return Numbers(self.ids, self.order)

    @cached_property
    def order(self) -> NDArray[np.int32]:
        """Return the rows in the order of the ids."""
        return image_ids.in_order(self.ids)

    def counts(self) -> dict[str, int]:
        """Return the number of images in each shard."""
        counts = np.bincount(self.shard, minlength=len(self.shards)).tolist()
        return dict(zip(self.shards, counts, strict=True))

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "Ledger":
        """Return some rows."""
        columns = {name: getattr(self, name)[rows] for name in COLUMNS}
        return Ledger(**columns, shards=self.shards, names=self.names)


COLUMNS: dict[str, Any] = {
    "ids": image_ids.ID, "phash": np.uint64, "split": np.int8, "batch": np.int32, "shard": np.int32, "group": np.int32,
}  # fmt: skip


@dataclass
class Numbers:
    """Finds the numbers of images by their ids; what is not in the ledger gets further numbers."""

    ids: Digests
    order: NDArray[np.int32]
    others: dict[str, int] = field(default_factory=dict)

    def of(self, ids: Sequence[str | None]) -> NDArray[np.int32]:
        """Return the number of each image (n,), NONE where the id is none."""
        there = [name for name in ids if name]
        found = image_ids.find(image_ids.digests(there), self.ids, self.order)
        for at in np.flatnonzero(found < 0):
            found[at] = self.others.setdefault(there[at], len(self.ids) + len(self.others))
        if len(there) == len(ids):
            return found
        numbers = np.full(len(ids), NONE, np.int32)
        numbers[[at for at, name in enumerate(ids) if name]] = found
        return numbers

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return len(self.ids) + len(self.others)


def load(folder: Path) -> Ledger:
    """Read the ledger, file by file; an empty one if there is none.

    Raises:
        DamagedError: a file is damaged, or of another dataset.
    """
    path = folder / tables.LEDGER
    parts = (table_files.read(file, SCHEMA, of_shard=path.is_dir()) for file in table_files.files_of(path))
    return _joined(_columns(part) for part in parts)


def _columns(part: pa.Table) -> Ledger:
    """Return what is kept in memory of rows of the ledger."""
    shards, groups = (pc.dictionary_encode(part[name]).unify_dictionaries() for name in ("shard", "group"))
    return Ledger(
        image_ids.digests(part["image_id"].to_pylist()),
        part["phash"].to_numpy(),
        split_codes(part["split"]),
        part["batch"].to_numpy().astype(np.int32),
        _codes(shards),
        _codes(groups),
        _values(shards),
        _values(groups),
    )


def split_codes(column: pa.ChunkedArray) -> NDArray[np.int8]:
    """Return the code of each split (n,), NONE for null."""
    codes = pc.fill_null(pc.index_in(column, value_set=pa.array(SPLITS)), NONE)
    found: NDArray[np.int8] = codes.to_numpy().astype(np.int8)
    return found


def _codes(column: pa.ChunkedArray) -> NDArray[np.int32]:
    parts = [pc.fill_null(chunk.indices, NONE).to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate([np.empty(0, np.int32), *parts]).astype(np.int32)


def _values(column: pa.ChunkedArray) -> list[str]:
    values: list[str] = column.chunk(0).dictionary.to_pylist() if column.num_chunks else []
    return values


def _joined(parts: Iterable[Ledger]) -> Ledger:
    """Return ledgers one after the other."""
    shards: dict[str, int] = {}
    names: dict[str, int] = {}
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in COLUMNS}
    for part in parts:
        coded = replace(
            part, shard=recoded(part.shard, part.shards, shards), group=recoded(part.group, part.names, names)
        )
        for name, arrays in columns.items():
            arrays.append(getattr(coded, name))
    whole: dict[str, NDArray[Any]] = {}
    for name, kind in COLUMNS.items():  # one after the other, so that little is there twice
        whole[name] = np.concatenate([np.empty(0, kind), *columns.pop(name)])
    return Ledger(**whole, shards=list(shards), names=list(names))


def recoded(codes: NDArray[np.integer[Any]], values: Iterable[str], known: dict[str, int]) -> NDArray[np.int32]:
    """Return codes of values as codes of known ones, to which these are added; NONE stays."""
    new = [known.setdefault(value, len(known)) for value in values]
    found: NDArray[np.int32] = np.array([*new, NONE], np.int32)[codes]
    return found


def with_packed(ledger: Ledger, images_dir: Path, scan: Scan) -> Ledger:
    """Add images packed since the ledger was written; images packed a second time keep split, batch and group."""
    here = sorted(shards.names(images_dir))
    batch = int(ledger.batch.max(initial=0)) + 1
    new = (_packed(part, batch) for shard in unrecorded(ledger, here, scan) for part in scan.packed_tables([shard]))
    both = _joined(chain([ledger], new))
    if len(both) == len(ledger):
        return ledger
    is_again = image_ids.are_again(both.ids, both.order)
    if not is_again.any():
        return both
    is_old, is_here = np.arange(len(both)) < len(ledger), np.zeros(len(both), bool)
    is_here[: len(ledger)] = ledger.in_shards(here)
    kept = np.ones(len(both), bool)
    for rows in _runs(both.order, is_again):
        old, added = rows[is_old[rows]], rows[~is_old[rows]]
        kept[rows if not is_here[old].any() else added] = False
        if len(added) and not is_here[old].any():
            kept[added[0]] = True
            for column in (both.split, both.batch, both.group):
                column[added[0]] = column[old[-1]] if len(old) else column[added[0]]
        else:
            kept[old] = True
    return both.take(kept)


def unrecorded(ledger: Ledger, shards: Iterable[str], scan: Scan) -> list[str]:
    """Return those of some shards of which the scan cache has images that are not in the ledger."""
    known, packed = ledger.counts(), scan.packed_counts()
    return [shard for shard in shards if packed.get(shard, 0) > known.get(shard, 0)]


def _runs(order: NDArray[np.int32], is_again: NDArray[np.bool_]) -> Iterator[NDArray[np.int32]]:
    """Yield the rows of each image that there is more than once, in their order."""
    change = np.diff(np.append(is_again, False).astype(np.int8))
    for start, end in zip(np.flatnonzero(change == 1), np.flatnonzero(change == -1), strict=True):
        yield np.sort(order[start : end + 1])


def _packed(table: pa.Table, batch: int) -> Ledger:
    n = len(table)
    more = {"split": pa.nulls(n, pa.string()), "batch": pa.array(np.full(n, batch, np.int32))}
    for name, column in (more | {"group": pa.nulls(n, pa.string())}).items():
        table = table.append_column(name, column)
    return _columns(table)


def rows_of_shards(ledger: Ledger) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield the name of each shard that has images, in order, and their numbers in the order of the ledger."""
    order = np.argsort(ledger.shard, kind="stable")
    ends = np.cumsum(np.bincount(ledger.shard, minlength=len(ledger.shards)))
    for shard, code in sorted((shard, code) for code, shard in enumerate(ledger.shards)):
        rows = order[ends[code - 1] if code else 0 : ends[code]]
        if len(rows):
            yield shard, rows
