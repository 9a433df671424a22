"""Evenly spaced items out of many."""

import numpy as np
from numpy.typing import NDArray


def evenly_spaced(count: int, most: int) -> "slice | NDArray[np.int64]":
    """Return what selects `most` of `count` entries, the first and the last among them; all if there are no more."""
    return np.linspace(0, count - 1, most).astype(np.int64) if count > most else slice(None)
