"""The files of the dataset's tables: one per shard, replaced together, each with a digest of its rows.

A table that is written shard by shard is never whole in memory.
"""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rootstock.system import digests, memory
from rootstock.system.digests import digest_in, with_digest
from rootstock.system.files import damaged, reading, replacing, replacing_folder, sync

NEXT = ".next"  # suffix of a complete new table that is about to replace the current one
OPTIONAL = {"group"}  # columns that are left out if they are empty, as in tables of earlier versions


def files_of(path: Path) -> list[Path]:
    """Return the files of a table in row order; empty if it does not exist."""
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    return [path] if path.exists() else []


def write_by_shard(folder: Path, parts: Iterable[tuple[str, pa.Table]], schema: pa.Schema) -> None:
    """Write a table atomically: from half of a random split, the next run would draw a different one.

    Changed files are written to a sibling folder, which is complete once it has its name, and then moved.

    Args:
        folder: of the table.
        parts: the name of each shard that has rows, and these; the current files are there until all are consumed.
        schema: of the files.
    """
    with replacing_folder(folder.with_suffix(NEXT)) as temporary:
        written = set()
        for shard, rows in parts:
            write(temporary / f"{shard}.parquet", rows, schema, unless_like=folder / f"{shard}.parquet")
            written.add(f"{shard}.parquet")
            del rows  # before those of the next shard are put together
            memory.release_unused()
        for path in files_of(folder):
            if path.name not in written:
                write(temporary / path.name, schema.empty_table(), schema, unless_like=path)
    move_in(folder)


def move_in(folder: Path) -> None:
    """Move the files that `write_by_shard` wrote, perhaps in a killed run; a file without rows means removal."""
    new = folder.with_suffix(NEXT)
    if not new.exists():
        return
    if folder.is_file():  # the format of earlier versions
        folder.unlink()
    folder.mkdir(exist_ok=True)
    for path in files_of(new):
        if pq.read_metadata(path).num_rows:
            path.replace(folder / path.name)
        else:
            (folder / path.name).unlink(missing_ok=True)
            path.unlink()
    sync(folder)
    new.rmdir()


def write(path: Path, rows: pa.Table, schema: pa.Schema, unless_like: Path | None = None) -> None:
    """Write a file of a table, unless the one that is there, or `unless_like`, has the same columns and digest."""
    table = with_digest(rows.select(schema.names).cast(schema).replace_schema_metadata())
    there = unless_like or path
    if not there.is_file() or not pq.read_schema(there).equals(table.schema, check_metadata=True):
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")


def check_written(paths: Iterable[Path]) -> None:
    """Check that either all files have a digest or, from earlier versions, none has.

    Raises:
        DamagedError: one was not written by ingest.
    """
    schemas = {}
    for path in paths:
        with reading(path):
            schemas[path] = pq.read_schema(path)
    foreign = [path for path, schema in schemas.items() if not digest_in(schema)]
    if foreign and len(foreign) < len(schemas):
        raise damaged(foreign[0], "was not written by ingest: it has no digest, unlike the other tables")


def read(path: Path, schema: pa.Schema, *, of_shard: bool = False) -> pa.Table:
    """Read a file of a table; optional columns that it lacks are empty.

    Args:
        path: of the file.
        schema: of the table, with its optional columns.
        of_shard: whether all rows are of the shard that the file is named after.

    Raises:
        DamagedError: the file is damaged, or has rows of another shard.
    """
    with reading(path):
        there = set(pq.read_schema(path).names)
    written = [field for field in schema if field.name in there or field.name not in OPTIONAL]
    table = digests.read(path, pa.schema(written))
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    if of_shard and table["shard"].unique().to_pylist() not in ([], [path.stem]):
        raise damaged(path, "belongs to another dataset: its rows are of another shard")
    return table.select(schema.names)
