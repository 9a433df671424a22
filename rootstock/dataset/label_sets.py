"""Sets of labels, in data sets whose images have any number of classes: in tables one text per image, `cat;dog`.

The text of an image with none of the classes is empty.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd  # not imported when ingest finds nothing new

SEPARATOR = ";"


def join(labels: Iterable[str]) -> str:
    """Return the text of some labels, each once and in order."""
    return SEPARATOR.join(sorted(set(labels)))


def parse(text: str, clean: Callable[[str], str]) -> str:
    """Return the text of labels that a person wrote, each normalised by `clean`; a separator alone means none."""
    return join(filter(None, map(clean, text.split(SEPARATOR))))


def split(text: str) -> list[str]:
    """Return the labels in a text."""
    return text.split(SEPARATOR) if text else []


def shown(text: str) -> str:
    """Return a text for a reader: `cat, dog`, or "none of the classes"."""
    return ", ".join(split(text)) or "none of the classes"


def classes_in(texts: Iterable[str]) -> list[str]:
    """Return all labels that occur in some texts, in order."""
    return sorted({label for text in set(texts) for label in split(text)})


def one_row_per_label(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return each row once per label, with that as its `label`; rows without labels are left out."""
    return rows.assign(label=rows["label"].str.split(SEPARATOR)).explode("label").query("label != ''")


def rarest(has: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the rarest class of each image (n,), k for one of none of the k classes; what draws are stratified by.

    Args:
        has: which classes each image has (n, k).
    """
    counts = np.append(has.sum(axis=0), len(has) + 1)
    order = np.argsort(counts, kind="stable")  # the rarest first, and last that of none
    padded = np.pad(has, ((0, 0), (0, 1)), constant_values=True)[:, order]
    found: NDArray[np.int64] = order[padded.argmax(axis=1)]
    return found


def matrix(texts: "pd.Series[str]", classes: Sequence[str]) -> NDArray[np.bool_]:
    """Return which of the classes each image has (n, k); other labels do not count."""
    codes, distinct = texts.factorize()
    index = {label: number for number, label in enumerate(classes)}
    has = np.zeros((len(distinct), len(classes)), np.bool_)
    for row, text in enumerate(distinct):
        has[row, [index[label] for label in split(text) if label in index]] = True
    found: NDArray[np.bool_] = has[codes]
    return found
