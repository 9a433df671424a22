"""Features of images that a dataset has, looked up by image id in its cache: nothing is computed for them."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.features import feature_files

SHARDS_KEPT = 4  # in memory: images of a folder lie in few shards


class KnownFeatures:
    """The cached features of a dataset's images.

    Args:
        folder: of the model's features; without it, nothing is known.
        manifest: with image_id and shard; None for no dataset.
    """

    def __init__(self, folder: Path | None, manifest: pd.DataFrame | None) -> None:
        self.folder, self._shards = folder, dict[str, str]()
        self._kept: OrderedDict[str, dict[str, NDArray[np.float32]]] = OrderedDict()
        if folder is not None and manifest is not None:
            there = {shard for shard in manifest["shard"].unique() if feature_files.is_intact(self._file(shard))}
            rows = manifest[manifest["shard"].isin(there)]
            self._shards = dict(zip(rows["image_id"], rows["shard"], strict=True))

    def get(self, image_id: str) -> NDArray[np.float32] | None:
        """Return the features (width,) of an image, or None if they are not known. For one thread."""
        shard = self._shards.get(image_id)
        return None if shard is None else self._read(shard).get(image_id)

    def __bool__(self) -> bool:
        return bool(self._shards)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._shards

    def _read(self, shard: str) -> dict[str, NDArray[np.float32]]:
        if shard not in self._kept:
            groups = feature_files.read([self._file(shard)])
            self._kept[shard] = {name: row for _, ids, x in groups for name, row in zip(ids, x, strict=True)}
            if len(self._kept) > SHARDS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(shard)
        return self._kept[shard]

    def _file(self, shard: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{shard}.parquet"
