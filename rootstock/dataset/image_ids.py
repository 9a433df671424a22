"""Columns of image ids, compared and joined by Arrow: as Python's objects, a million of them would take gigabytes.

Where all images are in memory at once, as digests: 32 bytes each instead of 64 letters and more.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd  # not imported when ingest finds nothing new

    Ids = pd.Series[str] | pd.Index[str]


ID_BYTES = 32
ID = np.dtype(f"S{ID_BYTES}")  # NumPy leaves out zero bytes at the end, which makes no difference where all are as long
Digests = NDArray[np.bytes_]
AT_ONCE = 65_536


def digests(ids: Sequence[str]) -> Digests:
    """Return image ids as digests (n,).

    Raises:
        ValueError: one is none.
    """
    content = bytes.fromhex("".join(ids))
    if len(content) != ID_BYTES * len(ids):
        raise ValueError("an image id is no digest")
    return np.frombuffer(content, ID)


def texts(found: Digests) -> pa.Array:
    """Return digests (n,) as image ids."""
    letters = np.ascontiguousarray(found).tobytes().hex().encode()
    ends = np.arange(len(found) + 1, dtype=np.int64) * (2 * ID_BYTES)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(letters)]
    return pa.Array.from_buffers(pa.large_string(), len(found), buffers).cast(pa.string())


def in_order(found: Digests) -> NDArray[np.int32]:
    """Return the positions of digests (n,) in their order."""
    return np.argsort(found, kind="stable").astype(np.int32)


def are_again(found: Digests, order: NDArray[np.int32] | None = None) -> NDArray[np.bool_]:
    """Return of digests (n,) in their order, None if they are in order, which are equal to the one before, (n,)."""
    again = np.zeros(len(found), bool)
    for at in range(1, len(found), AT_ONCE):  # a block at a time: all in their order would be a copy
        some = slice(at - 1, at + AT_ONCE)
        block = found[some if order is None else order[some]]
        again[at : at + AT_ONCE] = block[1:] == block[:-1]
    return again


def find(wanted: Digests, among: Digests, order: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the position of each wanted digest (n,) among others, of which `order` is the order; -1 if it is not."""
    if not len(among):
        return np.full(len(wanted), -1, np.int32)
    at = np.searchsorted(among, wanted, sorter=order)
    found = order[np.minimum(at, len(among) - 1)]
    return np.where(among[found] == wanted, found, np.int32(-1))


def is_in(ids: "Ids", others: "Ids") -> NDArray[np.bool_]:
    """Return which ids (n,) are among others, as pandas' `isin`, which takes ten times as long: 3 s a million."""
    import pyarrow.compute as pc  # as pandas: not where ingest finds nothing new

    found: NDArray[np.bool_] = pc.is_in(_arrow(ids), _arrow(others)).to_numpy(zero_copy_only=False)
    return found


def places(ids: "Ids", among: "Ids") -> NDArray[np.int64]:
    """Return the place of each id (n,) among others, the first one; -1 for those that are not there."""
    import pyarrow.compute as pc

    found = pc.fill_null(pc.index_in(_arrow(ids), value_set=_arrow(among)), -1)
    at: NDArray[np.int64] = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return at


def _arrow(ids: "Ids") -> pa.Array:
    return pa.array(ids, pa.large_string(), from_pandas=True)
