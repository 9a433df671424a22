"""A dataset with features under several keys, for tests that remove images from it and compact it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rootstock.config import params
from rootstock.dataset import shards, tables
from rootstock.features import compaction
from rootstock.features.compaction import CompactionResult, compact
from rootstock.ingest.ingest import IngestResult, ingest
from tests.small_dataset import CLASSES

MB = 2**20
WIDE, NARROW = "aaaaaaaaaaaa", "bbbbbbbbbbbb"  # keys


@dataclass(frozen=True)
class Store:
    """A dataset of three classes in shards of about ten images, and its features under two keys."""

    root: Path
    shard_mb: float = 0.05

    def __getattr__(self, name: str) -> Path:
        return self.root / name

    def ingest(self, delivery=None, **changed) -> IngestResult:
        settings = params.Ingest(
            sources=(params.Source(path=str(self.source), domain="studio"),),
            shard_mb=self.shard_mb, split=params.Split(val=0.2, test=0.2), allow_shrink=True, **changed,
        )  # fmt: skip
        return ingest(settings, 0, self.images, self.dataset, self.scratch, delivery)

    def compact(self, share: float = compaction.SHARE, shard_mb: float | None = None) -> CompactionResult:
        roots = [self.features, self.tried]
        shard_bytes = int((shard_mb or self.shard_mb) * MB)
        return compact(self.images, self.dataset, roots, self.scratch, shard_bytes, share)

    @property
    def data(self) -> tables.Dataset:
        return tables.load(self.dataset)

    @property
    def manifest(self) -> pd.DataFrame:
        return self.data.manifest

    def pixels(self) -> dict[str, bytes]:
        """The bytes of every image of the manifest, by its path."""
        with shards.Reader(self.images) as reader:
            rows = self.manifest[["path", "shard", "offset", "size"]].itertuples(index=False)
            return {path: reader.read(shard, offset, size) for path, shard, offset, size in rows}

    def values(self, key: Path) -> dict[str, bytes]:
        """The features of every image under a key."""
        tables = [pq.read_table(path) for path in sorted(key.glob("*.parquet"))]
        rows = pa.concat_tables(tables).to_pylist()
        return {row["image_id"]: np.array(row["feature"]).tobytes() for row in rows}

    def remove(self, share: float = 0.7) -> None:
        """Remove images of every class from the source: the first ones of every ten."""
        for label in CLASSES:
            for path in sorted((self.source / label).glob("*.png")):
                if int(path.stem) % 10 < 10 * share:
                    path.rename(self.aside / f"{label}-{path.name}")
        self.ingest()

    def bring_back(self) -> None:
        for path in self.aside.iterdir():
            label, _, name = path.name.partition("-")
            path.rename(self.source / label / name)

    def state(self) -> dict[str, bytes]:
        """Return the contents of all versioned files."""
        found = [path for folder in (self.images, self.dataset, self.features) for path in sorted(folder.rglob("*"))]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found if path.is_file()}


def fill(folder: Path, store: Store, dtype: str, names: list[str] | None = None) -> None:
    """Write features seeded by the image's id."""
    folder.mkdir(parents=True, exist_ok=True)
    scalar = pa.float16() if dtype == "float16" else pa.float32()
    schema = pa.schema(
        [("image_id", pa.string()), pa.field("feature", pa.list_(scalar, 8), nullable=False)],
        metadata={"rootstock": json.dumps({"backbone": "drawn", "dtype": dtype})},
    )
    for shard in names or shards.names(store.images):
        ids = [image for image, _ in shards.iter_places(store.images, shard)]
        drawn = [np.random.default_rng(list(image.encode())).normal(size=8).astype(dtype) for image in ids]
        column = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(drawn), scalar), 8)
        pq.write_table(pa.Table.from_arrays([pa.array(ids), column], schema=schema), folder / f"{shard}.parquet")
