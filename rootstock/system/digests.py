"""Stores a digest of a Parquet table's rows in its metadata, so that a reader can verify them."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rootstock.system.files import reading

DIGEST = b"rootstock.sha256"  # in the metadata of the schema


def digest_in(schema: pa.Schema) -> bytes | None:
    """Return the digest that a table was written with; None for earlier versions and other programs."""
    digest: bytes | None = (schema.metadata or {}).get(DIGEST)
    return digest


def with_digest(table: pa.Table) -> pa.Table:
    """Return a table with the digest of its rows in its metadata."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), DIGEST: digest_of(table)})


def read(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """Read a table and verify its rows against its digest; tables of earlier versions have none.

    Args:
        path: of a Parquet file.
        schema: to select and cast the columns to.

    Raises:
        DamagedError: it is not what was written.
    """
    with reading(path):
        table = pq.read_table(path)
        written, rows = digest_in(table.schema), table.select(schema.names).cast(schema) if schema else table
        if written and written != digest_of(rows):
            raise ValueError("its rows do not match its digest")
    return rows


def digest_of(table: pa.Table) -> bytes:
    """Return the SHA-256 of the rows of a table of strings and numbers, independent of file layout and chunking.

    Each column contributes its null mask, then its values.
    """
    import numpy as np  # not imported when ingest finds nothing new
    import pyarrow.compute as pc

    content = hashlib.sha256(f"{table.num_rows} {table.column_names}".encode())
    for column in table.columns:
        content.update(column.is_null().to_numpy().tobytes())
        if pa.types.is_null(column.type):
            continue
        if pa.types.is_large_string(column.type):  # as pandas stores strings
            column = column.cast(pa.string())
        if not pa.types.is_string(column.type):
            content.update(column.fill_null(0).to_numpy().tobytes())
            continue
        values = column.fill_null("")
        content.update(pc.binary_length(values).to_numpy().tobytes())
        for chunk in values.chunks:
            if len(chunk):
                _, ends, letters = chunk.buffers()
                offsets = np.frombuffer(ends, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
                content.update(memoryview(letters or b"")[offsets[0] : offsets[-1]])
    return content.hexdigest().encode()
