"""Rotated features that do not fit into memory, in a temporary file, so that no pass over them decodes Parquet.

The file has no name: nothing is left of it, however its process ends.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
SPARE = 2  # times its size must be free on the disk
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RotatedFile:
    """Mini-batches of rotated features (m, r) float32 in a file, and of labels in memory, on their device."""

    file: BinaryIO
    width: int
    labels: list[Tensor]

    def __iter__(self) -> Iterator[Batch]:
        """Yield the mini-batches from the first on.

        Raises:
            OSError: the disk failed.
        """
        self.file.seek(0)
        for labels in self.labels:
            features = torch.empty(len(labels), self.width)
            if self.file.readinto(features.numpy()) != features.nbytes:  # type: ignore[attr-defined]
                raise OSError(f"the temporary file of rotated features ended before its {len(self.labels):,} batches")
            yield features.to(labels.device), labels


def write(folder: Path, batches: Iterable[Batch], images: int, width: int) -> RotatedFile | None:
    """Write rotated mini-batches to a file without a name.

    Args:
        folder: on the disk that it takes, made if needed.
        batches: features (m, r) float32 and labels, all on one device.
        images: in all batches.
        width: r.

    Returns:
        The file, or None where the disk has too little room for it, or fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        size, free = 4 * images * width, shutil.disk_usage(folder).free
        if free < SPARE * size:
            log.warning(
                "%s: %.1f GB free; with %.1f GB, passes over the features would take less time",
                folder, free / 1e9, SPARE * size / 1e9,
            )  # fmt: skip
            return None
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  open as long as what is returned
        labels = []
        for features, own in batches:
            file.write(features.cpu().numpy().data)
            labels.append(own)
    except OSError as error:
        log.warning("%s: no temporary file of rotated features, so that passes take longer: %s", folder, error)
        return None
    return RotatedFile(file, width, labels)
