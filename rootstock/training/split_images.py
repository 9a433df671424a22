"""The images of a split as mini-batches on the device: decoded, or read from what an earlier pass has left."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from rootstock.config.architectures import Transform
from rootstock.config.section import Augment
from rootstock.dataset import tables
from rootstock.dataset.shards import Reader
from rootstock.images import loader
from rootstock.images.array_store import ArrayStore
from rootstock.images.loader import Ref
from rootstock.images.pixel_store import CropSource
from rootstock.system import processes
from rootstock.training import targets
from rootstock.training.ranks import ALONE, Ranks

log = logging.getLogger(__name__)
KEEPS_IMAGES = ("cuda",)  # kinds of devices
MOST_MEMORY = 0.4  # share of a device's free memory that images may take


@dataclass(frozen=True)
class SplitImages:
    """The images of a split: rows of the manifest, and the shards' folder.

    `store` has those that have been decoded before, and keeps the others; `crops` has whole images for random crops.
    `classes` are needed where images have any number of them.
    """

    rows: pd.DataFrame
    images_dir: Path
    store: ArrayStore | None = None
    crops: CropSource | None = None
    classes: tuple[str, ...] = ()

    def refs(self, order: NDArray[np.int64] | None = None, seed: int | None = None) -> list[Ref]:
        """Return references to the images in a given order, each with its own augmentation seed."""
        order = np.arange(len(self.rows)) if order is None else order
        columns = ("shard", "offset", "size", "image_id", "width", "height")
        places = zip(*(self.rows[name].to_numpy()[order].tolist() for name in columns), strict=True)
        return [
            Ref(shard, offset, size, None if seed is None else mix(seed, int(index)), image_id, (width, height))
            for index, (shard, offset, size, image_id, width, height) in zip(order, places, strict=True)
        ]

    def labels(self) -> Tensor:
        """Return the class indices (n,) int64, or which of any number of classes each image has (n, k) bool."""
        return torch.from_numpy(tables.labels_of_rows(self.rows, self.classes))


class Batches:
    """Mini-batches of a split (n, 3, size, size) uint8 on a device, channels last in memory.

    A GPU keeps the images of the first pass where they fit, and later passes take them from its memory.

    Args:
        images: of the split.
        reader: of their shards.
        transform: what the backbone expects.
        batch_size: of all mini-batches but the last.
        device: where they are used.
        augment: anew in every pass, which are then decoded every time.
        lone: whether the last mini-batch may hold a single image (see `loader.batch_sizes`).
        ranks: the processes that share each mini-batch. Then each reads images from the store on disk: the next epoch
            needs those of others.
    """

    def __init__(
        self, images: SplitImages, reader: Reader, transform: Transform, batch_size: int, device: torch.device,
        augment: Augment = "none", lone: bool = True, ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.images, self.reader, self.transform, self.device = images, reader, transform, device
        self.augment, self.ranks, self.batch_size = augment, ranks, ranks.largest_share(batch_size)
        self.sizes = loader.batch_sizes(len(images.rows), batch_size, lone)
        self._kept: Tensor | None = None
        # Else the cores train. Beside other processes, each has its share of them.
        self.in_processes = device.type == "cuda" and processes.pay(len(images.rows), ranks.threads())

    def __call__(
        self, order: NDArray[np.int64] | None = None, seed: int | None = None, skip: int = 0
    ) -> Iterator[Tensor]:
        """Yield all images once, in a given order, but for the first mini-batches; augmented if there is a seed."""
        shares = [indices for indices, _ in self._shares(order)[skip:]]
        if self.augment != "none" and seed is not None:
            yield from loader.on_device(self._decoded(shares, seed), self.device)
            return
        parts = torch.from_numpy(np.concatenate(shares)).to(self.device).split(list(map(len, shares)))
        if self._kept is not None:
            yield from (self._kept[part].permute(0, 3, 1, 2) for part in parts)
            return
        kept = None if skip else self._memory()
        for part, batch in zip(parts, loader.on_device(self._decoded(shares), self.device), strict=True):
            if kept is not None:
                kept[part] = batch.permute(0, 2, 3, 1)
            yield batch
        self._kept = kept

    def targets(self, order: NDArray[np.int64] | None = None, device: torch.device | str = "cpu") -> Sequence[Tensor]:
        """Return the target of each mini-batch (targets.py), copied at once."""
        whole, shares = targets.of_labels(self.images.labels()), []
        for indices, counted in self._shares(order):
            shares.append(targets.without(whole[indices], slice(counted, None)))
        together: Tensor = torch.cat(shares).to(device)
        return torch.split(together, list(map(len, shares)))

    def log_decoding(self) -> None:
        """Say whether processes or threads decode, at debug level where that does not have to keep up with a GPU."""
        level = logging.INFO if self.device.type == "cuda" else logging.DEBUG
        how = "processes" if self.in_processes else "threads"
        log.log(level, "fine_tune: decoding in %d %s", self.ranks.threads(), how)

    def _shares(self, order: NDArray[np.int64] | None) -> list[tuple[NDArray[np.int64], int]]:
        return self.ranks.share(np.arange(len(self.images.rows)) if order is None else order, self.sizes)

    def _decoded(self, shares: Sequence[NDArray[np.int64]], seed: int | None = None) -> Iterator[Tensor]:
        yield from loader.batches(
            self.reader, self.images.refs(np.concatenate(shares), seed), self.transform, list(map(len, shares)),
            self.augment, self.ranks.threads(), self.images.store, self.in_processes, self.images.crops,
        )  # fmt: skip

    def _memory(self) -> Tensor | None:
        """Return memory of the device for all images (n, size, size, 3), or None if they do not fit."""
        if self.device.type not in KEEPS_IMAGES or self.ranks.size > 1:
            return None
        size = self.transform.size
        shape = (len(self.images.rows), size, size, 3)
        if not fits_into_memory(int(np.prod(shape, dtype=np.int64)), self.device):
            log.debug("the images of a split do not fit into the GPU's memory: they are copied in every epoch")
            return None
        return torch.empty(shape, dtype=torch.uint8, device=self.device)


def mix(*parts: int) -> int:
    """Derive one seed from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


def fits_into_memory(size: int, device: torch.device) -> bool:
    """Check whether a GPU has room for so many bytes beside all that training takes; true on a CPU."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else np.inf
    return size <= MOST_MEMORY * free
