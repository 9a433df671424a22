"""Rows that are written in parts beside an output, so that a killed run goes on where it was."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rootstock.system.files import reading, replacing, write

ROWS = 2048  # of a part: what a killed run loses at most
FINGERPRINT = "of.json"  # the file that says what the parts are of


class Parts:
    """Tables in a folder, of ROWS rows or a few more each; those of another fingerprint are dropped."""

    def __init__(self, folder: Path, fingerprint: str, schema: pa.Schema) -> None:
        self.folder, self.schema, self._waiting = folder, schema, list[pa.Table]()
        of = folder / FINGERPRINT
        if not of.exists() or of.read_text() != fingerprint:
            self.remove()
            write(of, fingerprint)
        self._next = len(self.paths())

    def paths(self) -> list[Path]:
        """Return the files, in order."""
        return sorted(self.folder.glob("*.parquet"))

    def read(self) -> Iterator[pa.Table]:
        """Yield the tables, in order."""
        for path in self.paths():
            with reading(path):
                table = pq.read_table(path)
            yield table

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        self._waiting.append(table)
        if sum(map(len, self._waiting)) >= ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            with replacing(self.folder / f"{self._next:08d}.parquet") as temporary:
                pq.write_table(pa.concat_tables(self._waiting), temporary)
            self._waiting, self._next = [], self._next + 1

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()  # after an error, too: these rows need not be computed again

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
