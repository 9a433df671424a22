"""Find the rows of items by path, one after the other, faster than by halving columns of text."""

from array import array
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from rootstock.ingest.items import Items, each_text


class Rows:
    """The rows of chosen items by path: 16 bytes each, where a dict would take 200."""

    def __init__(self, items: Items, chosen: NDArray[np.bool_]) -> None:
        """Take items (n,), and which of them are chosen (n,)."""
        self._paths = items.stamps.paths
        rows = np.flatnonzero(chosen)
        hashes = np.fromiter(map(hash, each_text(self._paths)), np.int64, len(items))[rows]
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._rows = array("q", hashes[order].tobytes()), array("q", rows[order].tobytes())

    def of(self, path: str) -> int | None:
        """Return the row of a path; None if it is not among those chosen."""
        wanted = hash(path)
        at = bisect_left(self._hashes, wanted)
        while at < len(self._hashes) and self._hashes[at] == wanted:
            row = self._rows[at]
            if self._paths[row].as_py() == path:  # paths may share a hash
                return row
            at += 1
        return None
