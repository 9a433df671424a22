"""An ingested dataset in a folder, for tests that look at what ingest leaves."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from rootstock.config import params
from rootstock.dataset import tables
from rootstock.ingest.ingest import IngestResult, ingest
from rootstock.ingest.sources import Source

CLASSES = {"ants": 6, "bees": 5, "wasps": 4}  # the number of images of each class of the fixture `photos`
# An ingest in a process of its own; arguments: the store, the photos, the shard size, the seconds after which what the
# open shard has is kept again. It prints the number of new images, the heavy libraries that it imported, and its peak
# memory in MiB (getrusage would report that of the parent process, if larger).
ALONE = """
import sys
from pathlib import Path
from rootstock.system import memory
memory.prefer_jemalloc()  # as a stage does
from rootstock.config import params
from rootstock.ingest import open_shard
from rootstock.ingest.ingest import ingest
open_shard.EVERY_S = float(sys.argv[4])
root, source = Path(sys.argv[1]), params.Source(path=sys.argv[2], domain="garden")
settings = params.Ingest(sources=(source,), shard_mb=float(sys.argv[3]))
done = ingest(settings, 0, root / "images", root / "dataset", root / "scratch")
heavy = {"pandas", "torch", "sklearn", "prefect", "dvc"} & set(sys.modules)
print(done.new, sorted(heavy), int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024)
"""


class Store:
    """The three folders of an ingest, and their contents."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images, self.dataset, self.scratch = root / "images", root / "dataset", root / "scratch"

    def ingest(
        self, *sources: Path | str | params.Source, seed: int = 0, delivery: Source | None = None, **settings
    ) -> IngestResult:
        entries = [
            source if isinstance(source, params.Source) else params.Source(path=str(source), domain="garden")
            for source in sources
        ]
        given = params.Ingest(sources=tuple(entries), **settings)
        return ingest(given, seed, self.images, self.dataset, self.scratch, delivery)

    def start_ingest(self, source: Path, shard_mb: float = 256, kept_every_s: float = 20) -> subprocess.Popen:
        """Start an ingest in a process of its own, which a test may kill; it prints what ALONE says."""
        command = [sys.executable, "-c", ALONE, str(self.root), str(source), str(shard_mb), str(kept_every_s)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    @property
    def manifest(self) -> pd.DataFrame:
        return tables.load_manifest(self.dataset)

    @property
    def ledger(self) -> pd.DataFrame:
        return tables.load(self.dataset).ledger

    @property
    def rejected(self) -> dict[str, str]:
        """Reasons by path."""
        table = pq.read_table(self.dataset / "rejected.parquet").to_pydict()
        return dict(zip(table["path"], table["reason"], strict=True))

    @property
    def summary(self) -> dict:
        return json.loads((self.dataset / "summary.json").read_text())

    @property
    def splits(self) -> dict[str, str]:
        """Splits by image id."""
        manifest = self.manifest
        return dict(zip(manifest["image_id"], manifest["split"], strict=True))

    @property
    def labels(self) -> dict[str, str]:
        """Labels by path."""
        manifest = self.manifest
        return dict(zip(manifest["path"], manifest["label"], strict=True))

    def bytes(self) -> dict[str, bytes]:
        """Everything that is versioned."""
        files = [path for folder in (self.images, self.dataset) for path in folder.rglob("*")]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files if path.is_file()}

    def times(self) -> dict[str, int]:
        return {name: (self.root / name).stat().st_mtime_ns for name in self.bytes()}
