"""Digests of the rows of a Parquet table, in its own metadata: whoever reads it can tell that they are as written."""

import hashlib

import pyarrow as pa

DIGEST = b"rootstock.sha256"  # in the metadata of the schema


def digest_in(schema: pa.Schema) -> bytes | None:
    """Read the digest that a table was written with; earlier versions, and other programs, wrote none."""
    digest: bytes | None = (schema.metadata or {}).get(DIGEST)
    return digest


def digest_of(table: pa.Table) -> bytes:
    """Digest the rows of a table of texts and whole numbers, in whatever file and chunks they are.

    Of each column: what is missing, then the values.
    """
    import numpy as np  # a look that finds nothing new does without
    import pyarrow.compute as pc

    content = hashlib.sha256(f"{table.num_rows} {table.column_names}".encode())
    for column in table.columns:
        content.update(column.is_null().to_numpy().tobytes())
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
